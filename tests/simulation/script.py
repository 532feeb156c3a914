"""Reads scripted fleets: lines after ``> `` are commands, the lines that follow are what changed.

    pool NAME [capacity=N least=N most=N linger=S]      create NAME MODEL[:BYTES[:VERSION]][,...] [option=...]
    place | resize | expire | show | advance SECONDS    release LEASE | renew LEASE SECONDS [shorten]
    step WORKER | use LEASE | kill WORKER               break WORKER MODEL REASON | explain LEASE

``python -m tests.simulation.script FILE...`` writes the outputs anew.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator

from tests.simulation import world as worlds
from tests.unit.core import builders as b
from tms_server.model import bundle, group, ids, lease, source


def run(text: str) -> str:
    """The script with the outputs as they should be."""
    player = _Player()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines += [line, *player.play(line[2:])]
        elif line.startswith("#") or not line:
            lines.append(line)
    return "\n".join(lines) + "\n"


class _Player:
    def __init__(self) -> None:
        self.world = worlds.World()

    def play(self, line: str) -> Iterator[str]:
        name, *words = line.split()
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        commands: dict[str, Callable[..., list[str] | None]] = {
            "pool": self.pool, "create": self.create, "place": self.place, "resize": self.resize,
            "expire": self.expire, "show": self.show, "advance": self.advance, "release": self.release,
            "renew": self.renew, "step": self.step, "use": self.use, "kill": self.kill, "break": self.break_,
            "explain": self.explain,
        }  # fmt: skip
        before = self._lines()
        said = commands[name](*plain, **options)
        yield from (f"  {each}" for each in said or [])
        after = self._lines()
        yield from (f"  - {each}" for each in before if each not in after and each.startswith("worker "))
        yield from (f"  {each}" for each in after if each not in before)

    def pool(self, name: str, capacity: str = "100", least: str = "0", most: str = "4", linger: str = "0") -> None:
        made = b.a_pool(name, capacity=int(capacity), least=int(least), most=int(most), linger=float(linger))
        self.world.pools[made.name] = made

    def create(self, name: str, models: str, **options: str) -> None:
        framework = source.Framework(options.get("framework", "onnxruntime"))
        times = lease.Times(
            hold=b.s(float(options.get("hold", "10"))),
            activity_window=b.s(float(options.get("window", "10"))),
            max_lifetime=b.s(float(options["max"])) if "max" in options else None,
            pending_timeout=b.s(float(options.get("pending", "3600"))),
            renewal=lease.Renewal(options.get("renewal", "on_activity")),
        )
        sharing = lease.Sharing(
            share_with=_words(options, "share"), not_with=_words(options, "not"), exclusive="exclusive" in options
        )
        self.world.create(
            b.L(
                name,
                tuple(_model(each, framework) for each in models.split(",")),
                pool=options.get("pool", "default"),
                own=b.worker(int(options["own"])) if "own" in options else None,
                times=times,
                priority=int(options.get("priority", "0")),
                labels=tuple(
                    (key, value) for key, _, value in (each.partition(":") for each in _words(options, "label"))
                ),
                sharing=sharing,
            )
        )

    def place(self) -> None:
        self.world.place()

    def resize(self) -> None:
        self.world.resize()

    def expire(self) -> None:
        self.world.expire()

    def show(self) -> list[str]:
        return self._lines()

    def advance(self, seconds: str) -> None:
        self.world.now += b.s(float(seconds))

    def release(self, name: str) -> None:
        self.world.end(ids.LeaseId(name), lease.LeaseState.RELEASED, "Released")

    def renew(self, name: str, seconds: str, shorten: str = "") -> None:
        self.world.renew(ids.LeaseId(name), b.s(float(seconds)), allow_shorten=bool(shorten))

    def step(self, name: str) -> list[str]:
        """The worker does one step; its report arrives at once."""
        group_id = ids.GroupId(name)
        worker = self.world.workers[group_id]
        worker.step(self.world.wish(group_id))
        self.world.receive(worker.report())
        return [", ".join(f"{key.name} {model.state}" for key, model in worker.models.items()) or "holds nothing"]

    def use(self, name: str) -> list[str]:
        held = self.world.leases[ids.LeaseId(name)]
        group_id = self.world.home(held.id)
        worker = None if group_id is None else self.world.workers[group_id]
        served = worker is not None and all(worker.use(each.key, self.world.now) for each in bundle.models(held))
        return ["served" if served else "not served"]

    def kill(self, name: str) -> None:
        self.world.workers[ids.GroupId(name)].kill()
        self.world.disconnect(ids.GroupId(name))

    def break_(self, name: str, model: str, reason: str) -> None:
        self.world.workers[ids.GroupId(name)].broken[model] = reason

    def explain(self, name: str) -> list[str]:
        found = self.world.explain(ids.LeaseId(name))
        lines = [
            found.summary,
            *(f"worker {each.group_id}: {each.rule or 'fits'}: {each.message}" for each in found.workers),
        ]
        return [*lines, f"to fit: {found.smallest_change}"] if found.smallest_change else lines

    def _lines(self) -> list[str]:
        leases = [self._lease(each) for each in self.world.leases.values()]
        return [*leases, *(self._worker(each) for each in self.world.groups.values())]

    def _lease(self, held: lease.Lease) -> str:
        home = self.world.home(held.id)
        notes = [str(held.state), *([f"on {home}"] if home is not None else [])]
        notes += (
            [f"end {held.end.reason}: {held.end.message}" if held.end.message else f"end {held.end.reason}"]
            if held.end
            else []
        )
        for type_ in ("Placed", "Serving"):
            told = held.condition(type_)
            if held.state.living and told is not None and not told.status:
                notes.append(f"{type_}=False {told.reason}")
        return f"lease {held.id} {', '.join(notes)}"

    def _worker(self, held: group.WorkerGroup) -> str:
        here = [each for each in self.world.assignments.values() if each.group_id == held.id]
        holds = [f"{each.lease_id}{' (draining)' if each.draining else ''}" for each in here]
        notes = [
            held.framework_class or "any class",
            f"generation {held.generation}",
            f"holds {' '.join(holds) or 'nothing'}",
        ]
        notes += ["going"] if held.phase is group.GroupPhase.DRAINING else []
        return f"worker {held.id} {', '.join(notes)}"


def _words(options: dict[str, str], key: str) -> tuple[str, ...]:
    return tuple(word.replace(":", "=") if key != "label" else word for word in options.get(key, "").split(",") if word)


def _model(text: str, framework: source.Framework) -> b.M:
    name, size, version, *_ = [*text.split(":"), "", ""]
    return b.M(name, int(size or 0), version=version or "v1", framework=framework)


if __name__ == "__main__":
    for path in map(pathlib.Path, sys.argv[1:]):
        path.write_text(run(path.read_text()))
