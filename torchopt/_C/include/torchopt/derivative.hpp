// SPDX-License-Identifier: Apache-2.0
// Derivatives of kernels, which are kernels again.
//
// A kernel is a class with the constants
//   inputs    elementwise arguments,
//   outputs   elementwise results,
//   coefs     scalars that all elements share,
//   reduced   results that are summed over all elements,
//   depth     how many derivatives it is away from a rule,
// and a function apply<T>(inputs, coefs) on tuples, which returns the outputs and then the terms of the sums.
#pragma once

#include "dual.hpp"

namespace torchopt {

constexpr int top_level = 8;

// Vector-Jacobian product: from the inputs of a kernel and the cotangents of its outputs to the cotangents of its
// inputs and, if asked for, to those of its coefs, which are sums over all elements.
template <class K, bool WithCoefs = false>
struct Vjp {
  static_assert(K::reduced == 0, "only kernels without sums are differentiated");
  static constexpr int inputs = K::inputs + K::outputs, outputs = K::inputs, coefs = K::coefs;
  static constexpr int reduced = WithCoefs ? K::coefs : 0, depth = K::depth + 1;
  static constexpr int directions = outputs + reduced, own_level = top_level - depth;

  // The compiler drops factors that it sees to be one, which spares the algebra a type for it.
  template <class T, int First, class X, int... I>
  TORCHOPT_INLINE static auto seeds(const X& x, Sequence<I...>) {
    return tuple(dual<own_level>(get<I>(x), entries(Sequence<First + I>{}, T(1)))...);
  }
  template <class T, class X>
  TORCHOPT_INLINE static auto coef_seeds(const X& c) {
    if constexpr (WithCoefs) {
      return seeds<T, outputs>(c, Indices<coefs>{});
    } else {
      return c;
    }
  }
  // Sum over the outputs: cotangent times derivative in one direction.
  template <int Direction, int O, class Y, class X>
  TORCHOPT_INLINE static auto contract(const Y& y, const X& x) {
    if constexpr (O == K::outputs) {
      return Zero{};
    } else {
      return add(multiply(get<K::inputs + O>(x), tangent_at<own_level, Direction>(get<O>(y))),
                 contract<Direction, O + 1>(y, x));
    }
  }
  template <class Y, class X, int... D>
  TORCHOPT_INLINE static auto contract_all(const Y& y, const X& x, Sequence<D...>) {
    return tuple(contract<D, 0>(y, x)...);
  }

  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto y = K::template apply<T>(seeds<T, 0>(x, Indices<K::inputs>{}), coef_seeds<T>(c));
    return contract_all(y, x, Indices<directions>{});
  }
};

// Jacobian-vector product: from the inputs of a kernel and their tangents to the tangents of its outputs.
template <class K>
struct Jvp {
  static_assert(K::reduced == 0, "only kernels without sums are differentiated");
  static constexpr int inputs = 2 * K::inputs, outputs = K::outputs, coefs = K::coefs, reduced = 0;
  static constexpr int depth = K::depth + 1, own_level = top_level - depth;

  template <class X, int... I>
  TORCHOPT_INLINE static auto seeds(const X& x, Sequence<I...>) {
    return tuple(dual<own_level>(get<I>(x), entries(Sequence<0>{}, get<K::inputs + I>(x)))...);
  }
  template <class Y, int... O>
  TORCHOPT_INLINE static auto tangents(const Y& y, Sequence<O...>) {
    return tuple(tangent_at<own_level, 0>(get<O>(y))...);
  }

  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    return tangents(K::template apply<T>(seeds(x, Indices<K::inputs>{}), c), Indices<outputs>{});
  }
};

}  // namespace torchopt
