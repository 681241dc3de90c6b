// SPDX-License-Identifier: Apache-2.0
// Reading and writing elements of every storage type, on host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "catalogue.hpp"

namespace torchopt {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

TORCHOPT_INLINE float from_bits(std::uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
TORCHOPT_INLINE std::uint32_t to_bits(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

TORCHOPT_INLINE float widen(float x) { return x; }
TORCHOPT_INLINE double widen(double x) { return x; }
TORCHOPT_INLINE float widen(BFloat16 x) { return from_bits(std::uint32_t(x.bits) << 16); }
TORCHOPT_INLINE float widen(Float16 x) {
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  const std::uint32_t rest = std::uint32_t(x.bits & 0x7fffu) << 13;
  const std::uint32_t exponent = rest & 0x0f800000u;
  // Rebias the exponent by 112; all ones stay all ones (infinity, NaN), and a subnormal is a multiple of 2^-24.
  const std::uint32_t normal = rest + (112u << 23);
  const std::uint32_t special = rest | 0x7f800000u;
  const std::uint32_t subnormal = to_bits(float(std::int32_t(x.bits & 0x03ffu)) * 5.9604644775390625e-8f);
  const std::uint32_t magnitude = exponent == 0 ? subnormal : (exponent == 0x0f800000u ? special : normal);
  return from_bits(sign | magnitude);
}

// Rounding is to nearest, ties to even; a NaN stays one.
template <class S, class T>
struct Narrow {
  TORCHOPT_INLINE static S from(T x) { return S(x); }
};
template <class T>
struct Narrow<BFloat16, T> {
  TORCHOPT_INLINE static BFloat16 from(T value) {
    const std::uint32_t u = to_bits(float(value));
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return {std::uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
  }
};
template <class T>
struct Narrow<Float16, T> {
  TORCHOPT_INLINE static Float16 from(T value) {
    const std::uint32_t u = to_bits(float(value));
    const std::uint32_t magnitude = u & 0x7fffffffu;
    // Below 2^-14 results are subnormal: adding 0.5 shifts their bits into place and rounds them.
    const std::uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
    const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t result =
        magnitude < 0x38800000u ? small : (magnitude >= 0x47800000u ? special : normal);
    return {std::uint16_t((u >> 16 & 0x8000u) | result)};
  }
};

}  // namespace torchopt
