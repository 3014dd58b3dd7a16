// The random words that decide what dropout loses.
#pragma once

#include "kernels.h"

constexpr int64_t WORDS = 16, MASKED = 4 * WORDS;  // 64-bit words hashed at once, their elements

// Word i of a seed: the i-th output of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
inline uint64_t word(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Factors of 64 elements, 0 or `scale`: element i is kept where 16 bits of word i / 4 say so.
template <class T>
inline void factors(uint64_t seed, int64_t start, uint32_t lost, T scale, T* factor) {
  alignas(64) uint64_t words[WORDS];
  alignas(64) uint16_t bits[MASKED];
#pragma omp simd
  for (int64_t k = 0; k < WORDS; k++) words[k] = word(seed, start / 4 + k);
  std::memcpy(bits, words, sizeof bits);
#pragma omp simd
  for (int64_t k = 0; k < MASKED; k++) factor[k] = bits[k] >= lost ? scale : T(0);
}
