"""The simulated caches of trace_memory.c on made series of accesses whose misses are known."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tvmflow.measure import memory
from tvmflow.system import toolchain
from tvmflow.system.host import COMPUTER

KIB = 1024
LINE, PAGE = 64, 4096
FIRST = 32 * KIB
"""The first level's bytes, of four ways."""
OUTER = 512 * KIB
NAMES = ("misses", "streamed", "written_back")

SHIM = """
#include "caches.h"
void *make(uint64_t bytes, uint64_t ways, uint64_t outer) {
  struct memory *memory = calloc(1, sizeof *memory);
  memory->outers = 1;
  make_cache(&memory->first, bytes >> LINE_SHIFT, ways);
  make_cache(&memory->pages, 16, 4);
  make_cache(&memory->outer[0], outer >> LINE_SHIFT, 16);
  return memory;
}
void touch_bytes(struct memory *memory, const uint64_t *addresses, uint64_t count, unsigned size, int store) {
  for (uint64_t index = 0; index < count; ++index) access_memory(memory, addresses[index], size, store);
}
void forget(struct memory *memory) { reset_counts(memory); }
uint64_t pages(struct memory *memory) { return memory->page_misses; }
uint64_t stores(struct memory *memory) { return memory->store_misses; }
void read_level(struct memory *memory, int outer, uint64_t *into) {
  struct level *level = outer ? &memory->outer_counts[0] : &memory->first_counts;
  into[0] = level->misses, into[1] = level->streamed, into[2] = level->written_back;
}
"""


class Caches:
    def __init__(self, library: ctypes.CDLL, ways: int = 4) -> None:
        self.library = library
        self.memory = ctypes.c_void_p(
            library.make(ctypes.c_uint64(FIRST), ctypes.c_uint64(ways), ctypes.c_uint64(OUTER))
        )

    def access(self, addresses: range | list[int], size: int = 4, store: bool = False) -> None:
        given = np.array(addresses, np.uint64)
        self.library.touch_bytes(
            self.memory, ctypes.c_void_p(given.ctypes.data), ctypes.c_uint64(len(given)), size, int(store)
        )

    def level(self, *, outer: bool = False) -> dict[str, int]:
        into = (ctypes.c_uint64 * 3)()
        self.library.read_level(self.memory, int(outer), into)
        return dict(zip(NAMES, into, strict=True))

    def forget(self) -> None:
        self.library.forget(self.memory)

    def pages(self) -> int:
        return self.library.pages(self.memory)

    def stores(self) -> int:
        return self.library.stores(self.memory)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("caches")
    (folder / "shim.c").write_text(SHIM)
    options = ("-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{Path(memory.__file__).parent}")
    toolchain.link(toolchain.select_linker(COMPUTER), folder / "shim.so", [folder / "shim.c"], options)
    found = ctypes.CDLL(str(folder / "shim.so"))
    found.make.restype = ctypes.c_void_p
    found.pages.restype = found.stores.restype = ctypes.c_uint64
    return found


def test_a_stream_misses_once_a_line_and_all_but_two_are_foreseen(library):
    caches = Caches(library)
    caches.access(range(0, 1 << 20, 4))
    lines = (1 << 20) // LINE
    assert caches.level() == {"misses": lines, "streamed": lines - 2, "written_back": 0}
    assert caches.level(outer=True) == {"misses": lines, "streamed": lines - 2, "written_back": 0}


def test_a_stream_is_foreseen_backwards(library):
    caches = Caches(library)
    caches.access(range((1 << 20) - 4, -4, -4))
    assert caches.level()["streamed"] == (1 << 20) // LINE - 2


def test_fifteen_streams_at_once_are_foreseen(library):
    caches = Caches(library)
    caches.access([stream * (1 << 20) + stream * LINE * 8 + line * LINE for line in range(64) for stream in range(15)])
    assert caches.level()["streamed"] == 15 * 62


def test_sixteen_streams_are_too_many(library):
    caches = Caches(library)
    caches.access([stream * (1 << 20) + stream * LINE * 8 + line * LINE for line in range(64) for stream in range(16)])
    assert caches.level()["streamed"] == 0


def test_what_fits_stays(library):
    caches = Caches(library)
    caches.access(range(0, FIRST, 4))
    caches.forget()
    caches.access(range(0, FIRST, 4))
    assert caches.level()["misses"] == 0
    assert caches.level(outer=True)["misses"] == 0


def test_a_line_more_than_a_set_has_ways_drives_out_all_of_it(library):
    caches = Caches(library)
    way = FIRST // 4
    caches.access([place * way for place in range(5)])
    caches.forget()
    caches.access([place * way for place in range(5)] * 10)
    assert caches.level()["misses"] == 50
    assert caches.level(outer=True)["misses"] == 0


def test_what_was_used_least_recently_makes_room(library):
    caches = Caches(library)
    way = FIRST // 4
    caches.access([0, way, 2 * way, 3 * way, 0, 4 * way])  # drives out `way`
    caches.forget()
    caches.access([0])
    assert caches.level()["misses"] == 0
    caches.access([way])
    assert caches.level()["misses"] == 1


def test_what_is_larger_than_the_first_level_stays_in_the_second(library):
    caches = Caches(library)
    caches.access(range(0, OUTER // 2, LINE))
    caches.forget()
    caches.access(range(0, OUTER // 2, LINE))
    assert caches.level()["misses"] == OUTER // 2 // LINE
    assert caches.level(outer=True)["misses"] == 0


def test_what_was_written_is_written_back_once(library):
    caches = Caches(library)
    caches.access(range(0, 2 * OUTER, 4), store=True)
    caches.access(range(1 << 30, (1 << 30) + 2 * OUTER, LINE))
    lines = 2 * OUTER // LINE
    assert caches.stores() == lines
    assert caches.level()["written_back"] == lines
    assert caches.level(outer=True)["written_back"] == lines


def test_a_line_that_is_read_and_then_written_is_dirty(library):
    caches = Caches(library)
    caches.access([0])
    caches.access([0], store=True)
    caches.access([place * FIRST // 4 for place in range(1, 5)])
    assert caches.level()["written_back"] == 1


def test_an_access_over_two_lines_touches_both(library):
    caches = Caches(library)
    caches.access([LINE - 8], size=16)
    assert caches.level()["misses"] == 2


def test_pages_are_counted_beyond_what_is_kept(library):
    caches = Caches(library)
    caches.access(range(0, 16 * PAGE, PAGE))
    caches.forget()
    caches.access(range(0, 16 * PAGE, PAGE))
    assert caches.pages() == 0
    caches.access(range(0, 32 * PAGE, PAGE))
    assert caches.pages() == 16
