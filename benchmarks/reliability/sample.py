"""A sample of the faults or of the losses of power, told as JSON: what the tests run, under the shim.

python -m benchmarks.reliability.sample faults 250 FOLDER
python -m benchmarks.reliability.sample powerloss 8 FOLDER
python -m benchmarks.reliability.sample without-fsync 8 FOLDER    # must find broken promises, or it finds none ever
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.reliability import allocations, faults, powerloss, shim
from benchmarks.reliability.scenes import Stage


def main() -> None:
    what, count, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if what == "allocations":
        tally = allocations.run(count, folder)
        print(json.dumps({"tried": tally.tried, "bad": tally.bad}))
        return
    if not shim.Shim.is_loaded():
        shim.restart_under(shim.build(folder))
    root = folder / "root"
    root.mkdir()
    if what == "faults":
        tried, total = faults.run(count, root)
        print(json.dumps({"tried": tried.points, "total": total, "resumed": tried.resumed, "bad": tried.bad}))
        return
    stage = Stage(root)
    lost = powerloss.Tally()
    for scene in stage.scenes():
        if scene.writes:
            events = powerloss.trace(stage, scene)
            if what == "without-fsync":
                events = [event for event in events if event.call != "fsync"]
            powerloss.lose_power(stage, scene, events, count, 0 if what == "without-fsync" else 2, lost)
    print(json.dumps({"tried": lost.states, "resumed": lost.recovered, "bad": lost.bad}))


if __name__ == "__main__":
    main()
