"""What a kind of target says of itself beside its boards: all that is known without importing its compiler."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmflow.spec import Basis, Facts

if TYPE_CHECKING:
    from tvmflow.integer.layers import Scheme


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A command that isn't Python's, which something goes without: `purpose` says what, `packages` are Debian's."""

    command: str
    packages: Sequence[str]
    purpose: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Wheels:
    """What something needs of the Python package index beyond tvmflow itself; `extra` of tvmflow brings all of it.

    The version of the first of the `packages` is shown.
    """

    name: str
    packages: Sequence[str]
    extra: str
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """How an inference is traced for `tvmflow.measure.cycles`.

    `module` has `trace_calls(bundle)`, which gives the Traced of one inference. `emulators` are what runs the code, by
    its bits: a command, and Debian's package of it. Where the module also `follows` memory, it has `follow(bundle,
    hierarchy)` of `tvmflow.measure.emulate`, which latencies are modelled by.
    """

    module: str
    emulators: Mapping[int, tuple[str, str]]
    follows: bool = False


@dataclass(frozen=True, kw_only=True)
class Disassembly:
    """A kind whose library can be read as text: `module` has `sections(folder)`, `of` is what it is a program for."""

    module: str
    of: str


@dataclass(frozen=True, kw_only=True)
class OwnSearch:
    """The search of a kind of its own: its modules, what it tunes, and what the latencies rest on."""

    module: str
    records: str
    arithmetic: str
    basis: Basis


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of target. `backend` is its module with the functions of `tvmflow.targets.kind.Backend`.

    `boards` are its boards in words, `default_board` is the one that `--target` means, and `facts` is the type of what
    only they have. Of the rest the defaults are those of a CPU under an operating system:

    - `needs_device`: whether `time` needs one; without, latency is simulated, or there is none.
    - `writes_source`: whether a build can leave the network's source for people.
    - `weights_in_flash`: whether RAM needn't hold them.
    - `why_not_deployed`: why no bundle is carried to its boards, in the words that come after its path.
    - `scheme`: how networks are quantised for it, if nobody says otherwise.
    - `on_the_processor`: of a kind with an accelerator, the operators of quantised networks that it leaves to the
      board's processor, by their names in `tvmflow.integer.operators.OPERATORS`.
    - `search`: its own, where that of schedules for TVM's kernels isn't for it.
    - `candidates`: a module with the functions of `tvmflow.targets.search.Candidates`, where compiling and running a
      kernel takes more than a CPU.
    - `tracer` and `disassembly`: whether its cycles can be modelled, and its libraries read.
    - `tools` and `wheels`: what `tvmflow doctor` looks for on its behalf.
    """

    name: str
    backend: str
    boards: str
    default_board: str
    facts: type[Facts] = Facts
    needs_device: bool = True
    writes_source: bool = False
    weights_in_flash: bool = False
    why_not_deployed: str = ""
    scheme: Scheme = "per-channel"
    on_the_processor: Collection[str] = ()
    search: OwnSearch | None = None
    candidates: str | None = None
    tracer: Tracer | None = None
    disassembly: Disassembly | None = None
    tools: Sequence[Tool] = ()
    wheels: Sequence[Wheels] = ()


KINDS: dict[str, Kind] = {}
"""All kinds by name. `tvmflow.targets` enters them: what kinds say of themselves lies below them, for all to read."""


def facts_types() -> dict[str, type[Facts]]:
    """The types of facts that only some boards have, by what .toml files and manifests call them."""
    return {kind.facts.NAME: kind.facts for kind in KINDS.values() if kind.facts.NAME}
