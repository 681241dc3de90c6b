// SPDX-License-Identifier: Apache-2.0
// A tuple small enough for device code, and the function attributes that host and device share.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define TORCHOPT_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define TORCHOPT_INLINE __forceinline
#elif defined(__OPTIMIZE__)
#define TORCHOPT_INLINE inline __attribute__((always_inline))
#else
// They work on local variables only. Instrumented by a sanitizer, or inlined into one another, they would take minutes to compile.
#define TORCHOPT_INLINE inline __attribute__((no_sanitize("address", "undefined")))
#endif

namespace torchopt {

// Not std::integer_sequence, whose namespace would then be searched for functions such as max.
template <int... I>
struct Sequence {};
template <int... I>
Sequence<I...> sequence_of(std::integer_sequence<int, I...>);
template <int N>
using Indices = decltype(sequence_of(std::make_integer_sequence<int, N>{}));

// Values that are found by number. Each is a base of its own, so that finding one does not pass through the others: a
// compiler makes one function for each number and type, whatever the values beside it.
template <int I, class T>
struct Entry {
  T value;
};
template <class Numbers, class... T>
struct Entries;
template <int... I, class... T>
struct Entries<Sequence<I...>, T...> : Entry<I, T>... {
  static constexpr int size = sizeof...(T);
};

template <int... I, class... T>
TORCHOPT_INLINE Entries<Sequence<I...>, T...> entries(Sequence<I...>, const T&... values) {
  return {{values}...};
}

template <int I, class T>
TORCHOPT_INLINE const T& get(const Entry<I, T>& entry) {
  return entry.value;
}

// Those whose numbers are 0, 1, 2, ...
template <class... T>
using Tuple = Entries<Indices<int(sizeof...(T))>, T...>;

template <class... T>
TORCHOPT_INLINE Tuple<T...> tuple(const T&... values) {
  return {{values}...};
}

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

// For structured bindings.
template <class Numbers, class... T>
struct std::tuple_size<torchopt::Entries<Numbers, T...>> : std::integral_constant<std::size_t, sizeof...(T)> {};
template <std::size_t I, class Numbers, class... T>
struct std::tuple_element<I, torchopt::Entries<Numbers, T...>> {
  using type = std::decay_t<decltype(torchopt::get<int(I)>(std::declval<torchopt::Entries<Numbers, T...>>()))>;
};
