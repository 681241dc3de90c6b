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

struct Trace {
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old] = x;
    const auto& [keep, take, gradient, buffer] = c;
    auto b = average(keep, old, take, g);
    return tuple(term(gradient, g) + term(buffer, b), b);
  }
};

// (mean * m + gradient * g) / (slope * sqrt(v + shift) + offset), the form that Adam and its kin share.
template <class G, class M, class V, class A, class B, class C, class D, class E>
TORCHOPT_INLINE auto rescaled(const G& g, const M& m, const V& v, const A& mean, const B& gradient, const C& slope,
                              const D& offset, const E& shift) {
  return (mean * m + term(gradient, g)) / (term(slope, sqrt(v + shift)) + offset);
}

struct Adam {
  static constexpr int moments = 2, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_v] = x;
    const auto& [b1, d1, b2, d2, mean, gradient, slope, offset, shift] = c;
    auto m = average(b1, old_m, d1, g);
    auto v = average(b2, old_v, d2, g * g);
    return tuple(rescaled(g, m, v, mean, gradient, slope, offset, shift), m, v);
  }
};

struct AmsGrad {
  static constexpr int moments = 3, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_v, old_largest] = x;
    const auto& [b1, d1, b2, d2, mean, slope, offset, shift, correction] = c;
    auto m = average(b1, old_m, d1, g);
    auto v = average(b2, old_v, d2, g * g);
    auto largest = max(old_largest, correction * v);
    return tuple(rescaled(g, m, largest, mean, Zero{}, slope, offset, shift), m, v, largest);
  }
};

struct Yogi {
  static constexpr int moments = 2, coefs = 7;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_v] = x;
    const auto& [b1, d1, d2, mean, slope, offset, shift] = c;
    auto m = average(b1, old_m, d1, g);
    auto square = g * g;
    auto v = old_v - d2 * sign(old_v - square) * square;
    return tuple(rescaled(g, m, v, mean, Zero{}, slope, offset, shift), m, v);
  }
};

struct Belief {
  static constexpr int moments = 2, coefs = 9;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_v] = x;
    const auto& [b1, d1, b2, d2, mean, slope, offset, shift, floor] = c;
    auto surprise = g - old_m;
    auto m = average(b1, old_m, d1, g);
    auto v = average(b2, old_v, d2, surprise * surprise) + floor;
    return tuple(rescaled(g, m, v, mean, Zero{}, slope, offset, shift), m, v);
  }
};

struct Adamax {
  static constexpr int moments = 2, coefs = 5;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_n] = x;
    const auto& [b1, d1, b2, eps, correction] = c;
    auto m = average(b1, old_m, d1, g);
    auto n = max(b2 * old_n, abs(g) + eps);
    return tuple(m / (correction * n), m, n);
  }
};

struct Rms {
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old] = x;
    const auto& [keep, take, offset, shift] = c;
    auto v = average(keep, old, take, g * g);
    return tuple(g / (sqrt(v + shift) + offset), v);
  }
};

struct StdDev {
  static constexpr int moments = 2, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_m, old_v] = x;
    const auto& [keep, take, offset, shift] = c;
    auto m = average(keep, old_m, take, g);
    auto v = average(keep, old_v, take, g * g);
    return tuple(g / (sqrt(clip_negative(v - m * m) + shift) + offset), m, v);
  }
};

struct Rss {
  static constexpr int moments = 1, coefs = 1;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old] = x;
    const auto& [offset] = c;
    auto s = old + g * g;
    // Where s is zero so is g, and g / 1 is what it should be.
    const bool positive = number(s) > 0;
    return tuple(g / (where(positive, sqrt(s) + offset) + T(positive ? 0 : 1)), s);
  }
};

struct AdaDelta {
  static constexpr int moments = 2, coefs = 3;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, old_squares, old_steps] = x;
    const auto& [keep, take, eps] = c;
    auto squares = average(keep, old_squares, take, g * g);
    auto u = g * sqrt((old_steps + eps) / (squares + eps));
    return tuple(u, squares, average(keep, old_steps, take, u * u));
  }
};

struct Lion {
  static constexpr int moments = 1, coefs = 4;
  template <class T, class X, class C>
  TORCHOPT_INLINE static auto apply(const X& x, const C& c) {
    const auto& [g, m] = x;
    const auto& [b1, d1, b2, d2] = c;
    auto direction = average(b1, m, d1, g);
    return tuple(sign(direction), average(b2, m, d2, g));
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
    // In this order, compilers contract the first product with the sum: the update is not rounded before it is added.
    auto u = get<2>(c) * get<0>(y);
    return concatenate(tuple(u + term(get<3>(c), p)), slice<1, Rule::moments>(y));
  }
};

}  // namespace torchopt
