// What all kernels share. Plain C functions on plain pointers: no header of torch or Python is read,
// so one compiled library serves every version of both. Arrays are contiguous, row after row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int64_t MIN_PARALLEL = 1 << 16;  // fewer elements than this are one thread's work

extern int loractr_threads;  // how many may work, see use_threads
