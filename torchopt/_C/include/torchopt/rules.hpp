// SPDX-License-Identifier: Apache-2.0
// The update rules, each on one element.
//
// A rule maps a gradient g and its moments to an update u and the next moments. What the elements share (decay rates,
// bias corrections, epsilons) comes as coefficients, computed on the host in double precision: 1 - b2 formed in float32
// would be wrong in its fifth digit. Names and order of the coefficients are those of rules.py, which
// says what each rule computes in plain torch; tests compare the two.
#pragma once

#include "dual.hpp"

namespace torchopt {

// A coefficient of exactly zero switches its term off: an infinite parameter must not become NaN by 0 * inf. Where
// derivatives in the coefficient are asked for, it is a dual number and the term stays.
template <class C, class X>
TORCHOPT_INLINE auto term(const C& coef, const X& x) {
  if constexpr (is_number<C>) {
    return where(coef != 0, coef * x);
  } else {
    return coef * x;
  }
}

template <class A, class M, class B, class X>
TORCHOPT_INLINE auto average(const A& keep, const M& old, const B& take, const X& x) {
  return term(keep, old) + take * x;
}

struct Identity {
  static constexpr int moments = 0, coefs = 0;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C&) {
    return tuple(get<0>(x));
  }
};

struct Trace {  // keep take gradient buffer
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto b = average(get<0>(c), get<1>(x), get<1>(c), g);
    return tuple(term(get<2>(c), g) + term(get<3>(c), b), b);
  }
};

// (mean * m + gradient * g) / (slope * sqrt(v + shift) + offset), the form that Adam and its kin share.
template <class G, class M, class V, class A, class B, class C, class D, class E>
TORCHOPT_INLINE auto rescaled(const G& g, const M& m, const V& v, const A& mean, const B& gradient, const C& slope,
                              const D& offset, const E& shift) {
  return (mean * m + term(gradient, g)) / (term(slope, sqrt(v + shift)) + offset);
}

struct Adam {  // b1 d1 b2 d2 mean gradient slope offset shift
  static constexpr int moments = 2, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto v = average(get<2>(c), get<2>(x), get<3>(c), g * g);
    return tuple(rescaled(g, m, v, get<4>(c), get<5>(c), get<6>(c), get<7>(c), get<8>(c)), m, v);
  }
};

struct AmsGrad {  // b1 d1 b2 d2 mean slope offset shift correction
  static constexpr int moments = 3, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto v = average(get<2>(c), get<2>(x), get<3>(c), g * g);
    auto largest = max(get<3>(x), get<8>(c) * v);
    return tuple(rescaled(g, m, largest, get<4>(c), Zero{}, get<5>(c), get<6>(c), get<7>(c)), m, v, largest);
  }
};

struct Yogi {  // b1 d1 d2 mean slope offset shift
  static constexpr int moments = 2, coefs = 7;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto square = g * g;
    auto v = get<2>(x) - get<2>(c) * sign(get<2>(x) - square) * square;
    return tuple(rescaled(g, m, v, get<3>(c), Zero{}, get<4>(c), get<5>(c), get<6>(c)), m, v);
  }
};

struct Belief {  // b1 d1 b2 d2 mean slope offset shift floor
  static constexpr int moments = 2, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto surprise = g - get<1>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto v = average(get<2>(c), get<2>(x), get<3>(c), surprise * surprise) + get<8>(c);
    return tuple(rescaled(g, m, v, get<4>(c), Zero{}, get<5>(c), get<6>(c), get<7>(c)), m, v);
  }
};

struct Adamax {  // b1 d1 b2 eps correction
  static constexpr int moments = 2, coefs = 5;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto n = max(get<2>(c) * get<2>(x), abs(g) + get<3>(c));
    return tuple(m / (get<4>(c) * n), m, n);
  }
};

struct Rms {  // keep take offset shift
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto v = average(get<0>(c), get<1>(x), get<1>(c), g * g);
    return tuple(g / (sqrt(v + get<3>(c)) + get<2>(c)), v);
  }
};

struct StdDev {  // keep take offset shift
  static constexpr int moments = 2, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto m = average(get<0>(c), get<1>(x), get<1>(c), g);
    auto v = average(get<0>(c), get<2>(x), get<1>(c), g * g);
    return tuple(g / (sqrt(clip_negative(v - m * m) + get<3>(c)) + get<2>(c)), m, v);
  }
};

struct Rss {  // offset
  static constexpr int moments = 1, coefs = 1;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto s = get<1>(x) + g * g;
    // Where s is zero so is g, and g / 1 is what it should be.
    const bool positive = number(s) > 0;
    return tuple(g / (where(positive, sqrt(s) + get<0>(c)) + T(positive ? 0 : 1)), s);
  }
};

struct AdaDelta {  // keep take eps
  static constexpr int moments = 2, coefs = 3;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto squares = average(get<0>(c), get<1>(x), get<1>(c), g * g);
    auto u = g * sqrt((get<2>(x) + get<2>(c)) / (squares + get<2>(c)));
    return tuple(u, squares, average(get<0>(c), get<2>(x), get<1>(c), u * u));
  }
};

struct Lion {  // b1 d1 b2 d2
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto g = get<0>(x);
    auto direction = average(get<0>(c), get<1>(x), get<1>(c), g);
    return tuple(sign(direction), average(get<2>(c), get<1>(x), get<3>(c), g));
  }
};

// One rule after another.
template <class First, class Second>
struct Then {
  static constexpr int moments = First::moments + Second::moments, coefs = First::coefs + Second::coefs;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto a = First::template apply<T>(slice<0, 1 + First::moments>(x), slice<0, First::coefs>(c));
    auto own = slice<1 + First::moments, Second::moments>(x);
    auto b = Second::template apply<T>(concatenate(tuple(get<0>(a)), own),
                                             slice<First::coefs, Second::coefs>(c));
    return concatenate(tuple(get<0>(b)),
                       concatenate(slice<1, First::moments>(a), slice<1, Second::moments>(b)));
  }
};

// A whole optimizer step as a kernel: factor * rule(scale * g + decay * p) + weight * p. Sign flips, weight decay before or
// after the rule, the learning rate and p + u are choices of the four numbers.
template <class Rule>
struct Step {
  static constexpr int inputs = 2 + Rule::moments, outputs = 1 + Rule::moments, coefs = 4 + Rule::coefs;
  static constexpr int reduced = 0, depth = 0;

  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    auto p = get<inputs - 1>(x);
    auto g = get<0>(c) * get<0>(x) + term(get<1>(c), p);
    auto y = Rule::template apply<T>(concatenate(tuple(g), slice<1, Rule::moments>(x)),
                                           slice<4, Rule::coefs>(c));
    return concatenate(tuple(get<2>(c) * get<0>(y) + term(get<3>(c), p)), slice<1, Rule::moments>(y));
  }
};

}  // namespace torchopt
