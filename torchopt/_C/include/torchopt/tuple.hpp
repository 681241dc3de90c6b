// SPDX-License-Identifier: Apache-2.0
// A tuple small enough for device code, and the function attributes that host and device share.
#pragma once

#include <utility>

#if defined(__CUDACC__)
#define TORCHOPT_INLINE __host__ __device__ __forceinline__
#elif defined(TORCHOPT_SANITIZE)
// Functions that are instrumented grow; inlined into one another they would take minutes to compile.
#define TORCHOPT_INLINE inline
#elif defined(_MSC_VER)
#define TORCHOPT_INLINE __forceinline
#else
#define TORCHOPT_INLINE inline __attribute__((always_inline))
#endif

namespace torchopt {

template <class... T>
struct Tuple;

template <>
struct Tuple<> {
  static constexpr int size = 0;
};

template <class Head, class... Tail>
struct Tuple<Head, Tail...> {
  static constexpr int size = 1 + sizeof...(Tail);
  Head head;
  Tuple<Tail...> tail;
};

TORCHOPT_INLINE Tuple<> tuple() { return {}; }

template <class Head, class... Tail>
TORCHOPT_INLINE Tuple<Head, Tail...> tuple(Head head, Tail... tail) {
  return {head, tuple(tail...)};
}

template <int I, class Head, class... Tail>
TORCHOPT_INLINE auto get(const Tuple<Head, Tail...>& t) {
  if constexpr (I == 0) {
    return t.head;
  } else {
    return get<I - 1>(t.tail);
  }
}

template <int N>
using Indices = std::make_integer_sequence<int, N>;
template <int... I>
using Sequence = std::integer_sequence<int, I...>;

template <int Begin, class T, int... I>
TORCHOPT_INLINE auto slice(const T& t, Sequence<I...>) {
  return tuple(get<Begin + I>(t)...);
}

// The entries Begin, ..., Begin + Count - 1.
template <int Begin, int Count, class T>
TORCHOPT_INLINE auto slice(const T& t) {
  return slice<Begin>(t, Indices<Count>{});
}

template <class A, class B, int... I, int... J>
TORCHOPT_INLINE auto concatenate(const A& a, const B& b, Sequence<I...>, Sequence<J...>) {
  return tuple(get<I>(a)..., get<J>(b)...);
}

template <class A, class B>
TORCHOPT_INLINE auto concatenate(const A& a, const B& b) {
  return concatenate(a, b, Indices<A::size>{}, Indices<B::size>{});
}

}  // namespace torchopt
