import sys, tempfile, time
from pathlib import Path
from benchmarks.reliability import shim

if not shim.Shim.is_loaded():
    lib = shim.build(Path(tempfile.mkdtemp()))
    shim.restart_under(lib)
from benchmarks.reliability import faults

root = Path(tempfile.mkdtemp(dir="/dev/shm"))
t = time.time()
tally, total = faults.run(int(sys.argv[1]) if len(sys.argv) > 1 else None, root)
print(tally.points, "of", total, tally.resumed, dict(tally.ends), dict(tally.calls), time.time() - t)
import collections

print(len(tally.bad))
for b in tally.bad[: int(sys.argv[2]) if len(sys.argv) > 2 else 15]:
    print(b)
import shutil

shutil.rmtree(root)
