import sys, tempfile, time
from pathlib import Path
from benchmarks.reliability import shim

if not shim.Shim.is_loaded():
    shim.restart_under(shim.build(Path(tempfile.mkdtemp())))
from benchmarks.reliability import scenes
from collections import Counter

root = Path(tempfile.mkdtemp(dir="/dev/shm"))
st = scenes.Stage(root)
for sc in st.scenes():
    t = time.time()
    for _ in range(5):
        st.reset(sc)
        e = st.run(sc.arguments)
    print(sc.name, (time.time() - t) / 5, Counter(e.calls))
