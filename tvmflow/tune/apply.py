"""From records to a build: which schedules were found for a board."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tvmflow.spec import Best, Target, UserError
from tvmflow.system import toolchain
from tvmflow.targets import search as searches
from tvmflow.targets.search import MODELLED, Identity
from tvmflow.tune.store import Store, find_stores

log = logging.getLogger(__name__)


def default_work_dir() -> Path:
    """Where `tvmflow tune` keeps records unless told otherwise, and where `tvmflow build` looks for them."""
    return toolchain.cache_folder() / "tune"


def shipped_folders() -> list[Path]:
    """What tvmflow brings: a store for each CPU that was tuned for."""
    import tvmflow.schedules

    tuned = Path(str(tvmflow.schedules.__file__)).parent / "tuned"
    return sorted(path.parent for path in tuned.glob("*/identity.json"))


def find_records(target: Target, database: Path | None = None) -> dict[str, Best]:
    """The best schedule of each task that was tuned for this board, by task key.

    `database` (a store, or a work dir) comes first, then the default work dir, then what tvmflow brings. What a model
    has chosen is taken from `database` only. Raises UserError if `database` has no records for this board, with the
    reason.
    """
    wanted = _identity(target)
    stores = []
    if database is not None:
        stores.append(_given(database, wanted))
    for folder in [*find_stores(default_work_dir() / wanted.folder), *shipped_folders()]:
        try:
            store = Store(folder)
        except UserError as error:
            log.info(f"Not used: {error}")
            continue
        if store.identity == wanted:
            stores.append(store)
    found: dict[str, Best] = {}
    for store in stores:
        for key in store.tasks:
            best = store.best(key)
            if best is not None:
                found.setdefault(key, best)
    return found


def _identity(target: Target) -> Identity:
    """Whose records those of this board are."""
    if (own := searches.of(target)) is not None:
        return own.identity(target)
    from tvmflow.tune.tasks import identity

    return identity(target)


def _given(database: Path, wanted: Identity) -> Store:
    errors = []
    for identity in (wanted, modelled(wanted)):  # what was measured goes first
        for folder in find_stores(database):
            try:
                return Store(folder, identity)
            except UserError as error:
                errors.append(str(error))
    raise UserError(errors[0] if errors else f"There are no records of `tvmflow tune` in {database}.")


def modelled(identity: Identity) -> Identity:
    """Whose records those are that a model chose for a board."""
    return replace(identity, cpu=f"{identity.cpu}{MODELLED}")
