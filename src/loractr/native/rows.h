// Work on rows of embedding tables, or on experts, each a row of its stack.
//
// A row's work depends on nothing but the row, so results are the same for any number of threads.
#pragma once
#include "kernels.h"

namespace {

constexpr int64_t AHEAD = 12;  // rows asked for before their turn: tables are larger than caches
constexpr int64_t CHUNK = 256;  // rows that a thread takes at a time
constexpr int64_t WIDE = 256;  // numbers of a row that is a piece of work by itself

template <class T, int WRITES = 1>
void fetch(const T* table, int64_t row, int64_t width) {
  if (table == nullptr) return;
  const char *at = reinterpret_cast<const char*>(table + row * width);
  const char *end = reinterpret_cast<const char*>(table + (row + 1) * width);
  for (; at < end; at += 64) __builtin_prefetch(at, WRITES);
}

// A gradient by rows. The u-th row's is `scale` times the sum of values[order[n]] over the n from
// edges[u] to before edges[u + 1].
template <class T>
struct Gradient {
  const T* values;
  const int64_t* order;
  const int64_t* edges;
  double scale;
  int64_t count;  // of rows

  void sum(int64_t u, int64_t width, T* to) const {
    switch (width) {  // known sizes stay in registers
      case 1: return sum_of<1>(u, width, to);
      case 4: return sum_of<4>(u, width, to);
      case 8: return sum_of<8>(u, width, to);
      case 16: return sum_of<16>(u, width, to);
      case 32: return sum_of<32>(u, width, to);
      default: return width < WIDE ? sum_few(u, width, to) : sum_many(u, width, to);
    }
  }

  template <int W>
  void sum_of(int64_t u, int64_t width, T* to) const {
    const int64_t last = edges[count] - 1;
    T total[W] = {};
    for (int64_t n = edges[u]; n < edges[u + 1]; n++) {
      fetch(values, order[std::min(n + AHEAD, last)], width);
      const T* from = values + order[n] * width;
      for (int64_t c = 0; c < W; c++) total[c] += from[c];
    }
    for (int64_t c = 0; c < W; c++) to[c] = T(scale) * total[c];
  }

  // Written out: as one more case of `sum_of`, Adam on rows of 16 takes 1.6 times as long.
  [[gnu::noinline]] void sum_few(int64_t u, int64_t width, T* to) const {
    const int64_t last = edges[count] - 1;
    T total[WIDE];
    std::fill(total, total + width, T(0));
    for (int64_t n = edges[u]; n < edges[u + 1]; n++) {
      fetch(values, order[std::min(n + AHEAD, last)], width);
      const T* from = values + order[n] * width;
      for (int64_t c = 0; c < width; c++) total[c] += from[c];
    }
    for (int64_t c = 0; c < width; c++) to[c] = T(scale) * total[c];
  }

  [[gnu::noinline]] void sum_many(int64_t u, int64_t width, T* to) const {
    std::fill(to, to + width, T(0));
    for (int64_t n = edges[u]; n < edges[u + 1]; n++) {
      const T* from = values + order[n] * width;
#pragma omp simd
      for (int64_t c = 0; c < width; c++) to[c] += from[c];
    }
#pragma omp simd
    for (int64_t c = 0; c < width; c++) to[c] *= T(scale);
  }
};

// f(u, row, buffer of two rows' size) for each of the rows, or, without a list, of the first
// `count`. The rows' parts of `tables` are asked for beforehand; of wide rows, memory does so itself.
template <class T, class F>
void over_rows(const int64_t* rows, int64_t count, int64_t width, std::vector<const T*> tables,
               F f) {
#pragma omp parallel num_threads(loractr_threads) if (count * width > MIN_PARALLEL)
  {
    std::vector<T> buffer(2 * width);
    if (width < WIDE) {
#pragma omp for schedule(dynamic, CHUNK)
      for (int64_t u = 0; u < count; u++) {
        if (rows && u + AHEAD < count)
          for (const T* table : tables) fetch(table, rows[u + AHEAD], width);
        f(u, rows ? rows[u] : u, buffer.data());
      }
    } else {
#pragma omp for schedule(dynamic)
      for (int64_t u = 0; u < count; u++) f(u, rows ? rows[u] : u, buffer.data());
    }
  }
}

}  // namespace
