/* What a program's memory accesses meet in a core's caches: a level next to the core, and behind it caches of several
 * sizes, each as if it were the only one, so that one run tells of many boards.
 *
 * All are set-associative, write back and allocate on writes; what was used least recently makes room. A line that the
 * first level lacks is `streamed` if it follows (or precedes) a line that was missing, in one of the STREAMS latest series
 * of at least three: a prefetcher would have asked for it. Nothing is fetched early, so each line that is used is counted
 * once. Sizes need not be powers of two.
 */
#include <inttypes.h>
#include <stdlib.h>

enum { MAX_OUTER = 8, STREAMS = 15, LINE_SHIFT = 6, PAGE_SHIFT = 12, DIRTY = 1 };

struct cache {
  uint64_t sets, ways, *lines; /* of each set the latest first: (line + 1) << 1 | DIRTY, or 0 */
};

struct stream {
  uint64_t line;
  int step, length;
};

struct level {
  uint64_t misses, streamed, written_back;
};

struct memory {
  struct cache first, pages, outer[MAX_OUTER];
  int outers;
  struct stream streams[STREAMS]; /* the latest first */
  uint64_t last_line, last_page;  /* + 1 */
  int last_dirty;
  uint64_t accesses, store_misses, page_misses;
  struct level first_counts, outer_counts[MAX_OUTER];
};

static int make_cache(struct cache *cache, uint64_t entries, uint64_t ways) {
  cache->ways = ways;
  cache->sets = ways ? entries / ways : 0;
  cache->lines = cache->sets ? calloc(cache->sets * ways, sizeof *cache->lines) : NULL;
  return cache->lines != NULL;
}

/* Returns whether the line was there; `*evicted` is the line that was dirty and made room, + 1, or 0. */
static int touch(struct cache *cache, uint64_t line, int dirty, uint64_t *evicted) {
  uint64_t *set = cache->lines + line % cache->sets * cache->ways, wanted = line + 1, found = 0;
  uint64_t way = 0;
  while (way < cache->ways && set[way] >> 1 != wanted) ++way;
  int hit = way < cache->ways;
  if (hit)
    found = set[way];
  else
    way = cache->ways - 1;
  *evicted = !hit && (set[way] & DIRTY) ? set[way] >> 1 : 0;
  for (; way > 0; --way) set[way] = set[way - 1];
  set[0] = wanted << 1 | (found & DIRTY) | (dirty ? DIRTY : 0);
  return hit;
}

static int is_streamed(struct memory *memory, uint64_t line) {
  struct stream *streams = memory->streams, now = {line, 0, 1};
  int place = 0;
  for (; place < STREAMS; ++place) {
    int step = line == streams[place].line + 1 ? 1 : line + 1 == streams[place].line ? -1 : 0;
    if (step == 0 || streams[place].length == 0) continue;
    now.step = step;
    now.length = streams[place].length > 1 && streams[place].step != step ? 2 : streams[place].length + 1;
    break;
  }
  for (place -= place == STREAMS; place > 0; --place) streams[place] = streams[place - 1];
  streams[0] = now;
  return now.length >= 3;
}

static void access_line(struct memory *memory, uint64_t line, int store) {
  uint64_t victim, ignored;
  if (line + 1 == memory->last_line && (!store || memory->last_dirty)) return;
  memory->last_line = line + 1;
  memory->last_dirty = store;
  if (touch(&memory->first, line, store, &victim)) return;
  int streamed = is_streamed(memory, line);
  memory->first_counts.misses += 1;
  memory->first_counts.streamed += streamed;
  memory->first_counts.written_back += victim != 0;
  memory->store_misses += store;
  for (int index = 0; index < memory->outers; ++index) {
    struct level *counts = &memory->outer_counts[index];
    uint64_t pushed = 0;
    if (victim != 0) {
      touch(&memory->outer[index], victim - 1, 1, &pushed);
      counts->written_back += pushed != 0;
    }
    if (!touch(&memory->outer[index], line, 0, &ignored)) {
      counts->misses += 1;
      counts->streamed += streamed;
    }
    counts->written_back += ignored != 0;
  }
}

static void access_memory(struct memory *memory, uint64_t address, unsigned size, int store) {
  uint64_t page = address >> PAGE_SHIFT, line = address >> LINE_SHIFT, last = (address + size - 1) >> LINE_SHIFT, unused;
  memory->accesses += 1;
  if (page + 1 != memory->last_page) {
    memory->last_page = page + 1;
    memory->page_misses += !touch(&memory->pages, page, 0, &unused);
  }
  for (; line <= last; ++line) access_line(memory, line, store);
}

/* Keeps what is in the caches. */
static void reset_counts(struct memory *memory) {
  memory->accesses = memory->store_misses = memory->page_misses = 0;
  memory->first_counts = (struct level){0, 0, 0};
  for (int index = 0; index < MAX_OUTER; ++index) memory->outer_counts[index] = memory->first_counts;
}
