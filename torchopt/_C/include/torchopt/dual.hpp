// SPDX-License-Identifier: Apache-2.0
// Dual numbers: a value and its derivatives in some directions, carried through arithmetic.
//
// A derivative that is known to be zero when the code is compiled has the type Zero. Multiplying by it,
// or adding it, leaves no instruction behind, so that a derivative costs what its formula needs. Dual
// numbers nest: those of a higher level have those of a lower level as values. The level keeps the
// directions of two derivatives of one function apart.
//
// Local variables that hold dual numbers are not `const`: GCC 12 keeps a constant aggregate in memory, and a loop with
// one is not vectorized.
//
// Where the mathematics has no derivative, these conventions hold, which are those of rules.py:
// sqrt has derivative 0 at 0 and abs too; max of equals gives one half to each; sign has none anywhere.
#pragma once

#include <cmath>
#include <type_traits>

#include "tuple.hpp"

namespace torchopt {

struct Zero {};
struct One {};  // a partial derivative of sums; never a tangent

template <int Level, class Value, class Tangents>
struct Dual {
  Value value;
  Tangents tangents;  // entries whose numbers are the directions in which the derivative is not zero
};

template <class A>
struct LevelOf : std::integral_constant<int, 0> {};
template <int Level, class V, class D>
struct LevelOf<Dual<Level, V, D>> : std::integral_constant<int, Level> {};

template <class A>
constexpr int level = LevelOf<A>::value;
template <class A>
constexpr bool is_number = std::is_arithmetic<A>::value;
template <class A>
constexpr bool is_zero = std::is_same<A, Zero>::value;
template <class A>
constexpr bool is_one = std::is_same<A, One>::value;
template <class A>
constexpr bool is_scalar = is_number<A> || is_zero<A> || (level<A> > 0);
template <class A, class B>
constexpr int higher = level<A> > level<B> ? level<A> : level<B>;

// The numbers of entries.
template <class E>
struct NumbersOf;
template <class Numbers, class... T>
struct NumbersOf<Entries<Numbers, T...>> {
  using type = Numbers;
};
template <class E>
using Numbers = typename NumbersOf<E>::type;

constexpr int nth_bit(unsigned bits, int n) {
  int i = 0;
  for (; (bits >> i & 1) == 0 || n-- > 0; ++i) {
  }
  return i;
}
template <unsigned bits, int... N>
Sequence<nth_bit(bits, N)...> sequence_of_bits(Sequence<N...>);

// Whether a number is among others, and the numbers that are in one of two sequences or in both.
template <int I, class Others>
constexpr bool is_among = false;
template <int I, int... J>
constexpr bool is_among<I, Sequence<J...>> = ((I == J) || ...);
template <class A, class B>
struct UnionOf;
template <int... I, int... J>
struct UnionOf<Sequence<I...>, Sequence<J...>> {
  static constexpr unsigned bits = ((1u << I) | ... | ((1u << J) | ... | 0u));
  using type = decltype(sequence_of_bits<bits>(Indices<int(sizeof...(I)) + (int(!is_among<J, Sequence<I...>>) + ... + 0)>{}));
};

// Value and tangents at a level; a number of a lower level is a constant there.
template <int Level, class A>
TORCHOPT_INLINE auto value_at(const A& a) {
  if constexpr (level<A> == Level) {
    return a.value;
  } else {
    return a;
  }
}
template <int Level, int I, class A>
TORCHOPT_INLINE auto tangent_at(const A& a) {
  if constexpr (level<A> == Level) {
    if constexpr (is_among<I, Numbers<decltype(a.tangents)>>) {
      return get<I>(a.tangents);
    } else {
      return Zero{};
    }
  } else {
    return Zero{};
  }
}

// The plain number at the bottom, for comparisons.
template <class A>
TORCHOPT_INLINE auto number(const A& a) {
  if constexpr (level<A> == 0) {
    return a;
  } else {
    return number(a.value);
  }
}

template <class A, class B>
TORCHOPT_INLINE auto add(const A& a, const B& b);
template <class A, class B>
TORCHOPT_INLINE auto multiply(const A& a, const B& b);
template <class A>
TORCHOPT_INLINE auto negate(const A& a);

template <int Level, class V, class D>
TORCHOPT_INLINE Dual<Level, V, D> dual(const V& value, const D& tangents) {
  return {value, tangents};
}

// The chain rule: a function's value, its partial derivatives, and its arguments make the next number.
template <class DA, class TA, int... I>
TORCHOPT_INLINE auto chain(const DA& da, const TA& a, Sequence<I...> directions) {
  return entries(directions, multiply(da, get<I>(a))...);
}
template <class V, class DA, class A>
TORCHOPT_INLINE auto chain_rule(const V& value, const DA& da, const A& a) {
  return dual<level<A>>(value, chain(da, a.tangents, Numbers<decltype(a.tangents)>{}));
}

template <int I, class DA, class TA, class DB, class TB>
TORCHOPT_INLINE auto chain_in(const DA& da, const TA& a, const DB& db, const TB& b) {
  if constexpr (!is_among<I, Numbers<TB>>) {
    return multiply(da, get<I>(a));
  } else if constexpr (!is_among<I, Numbers<TA>>) {
    return multiply(db, get<I>(b));
  } else {
    return add(multiply(da, get<I>(a)), multiply(db, get<I>(b)));
  }
}
template <class DA, class TA, class DB, class TB, int... I>
TORCHOPT_INLINE auto chain(const DA& da, const TA& a, const DB& db, const TB& b, Sequence<I...> directions) {
  return entries(directions, chain_in<I>(da, a, db, b)...);
}
template <class V, class DA, class A, class DB, class B>
TORCHOPT_INLINE auto chain_rule(const V& value, const DA& da, const A& a, const DB& db, const B& b) {
  constexpr int L = higher<A, B>;
  if constexpr (level<A> < L) {
    return chain_rule(value, db, b);
  } else if constexpr (level<B> < L) {
    return chain_rule(value, da, a);
  } else {
    using Directions = typename UnionOf<Numbers<decltype(a.tangents)>, Numbers<decltype(b.tangents)>>::type;
    return dual<L>(value, chain(da, a.tangents, db, b.tangents, Directions{}));
  }
}

template <class A>
TORCHOPT_INLINE auto negate(const A& a) {
  if constexpr (is_zero<A>) {
    return a;
  } else if constexpr (is_number<A>) {
    return -a;
  } else {
    // By components and not by the chain rule, which would multiply by -1.
    return negate_components(a, Numbers<decltype(a.tangents)>{});
  }
}
template <class A, int... I>
TORCHOPT_INLINE auto negate_components(const A& a, Sequence<I...> directions) {
  return dual<level<A>>(negate(a.value), entries(directions, negate(get<I>(a.tangents))...));
}

template <class A, class B>
TORCHOPT_INLINE auto add(const A& a, const B& b) {
  if constexpr (is_zero<A>) {
    return b;
  } else if constexpr (is_zero<B>) {
    return a;
  } else if constexpr (is_number<A> && is_number<B>) {
    return a + b;
  } else {
    constexpr int L = higher<A, B>;
    return chain_rule(add(value_at<L>(a), value_at<L>(b)), One{}, a, One{}, b);
  }
}

template <class A, class B>
TORCHOPT_INLINE auto subtract(const A& a, const B& b) {
  return add(a, negate(b));
}

template <class A, class B>
TORCHOPT_INLINE auto multiply(const A& a, const B& b) {
  if constexpr (is_zero<A> || is_zero<B>) {
    return Zero{};
  } else if constexpr (is_one<A>) {
    return b;
  } else if constexpr (is_number<A> && is_number<B>) {
    return a * b;
  } else {
    constexpr int L = higher<A, B>;
    auto x = value_at<L>(a);
    auto y = value_at<L>(b);
    return chain_rule(multiply(x, y), y, a, x, b);
  }
}

template <class A>
TORCHOPT_INLINE auto reciprocal(const A& a) {
  if constexpr (is_number<A>) {
    return A(1) / a;
  } else {
    auto r = reciprocal(a.value);
    return chain_rule(r, negate(multiply(r, r)), a);
  }
}

template <class A, class B>
TORCHOPT_INLINE auto divide(const A& a, const B& b) {
  if constexpr (is_zero<A>) {
    return a;
  } else if constexpr (is_number<A> && is_number<B>) {
    return a / b;
  } else {
    constexpr int L = higher<A, B>;
    auto x = value_at<L>(a);
    auto y = value_at<L>(b);
    auto r = reciprocal(y);
    auto quotient = divide(x, y);
    return chain_rule(quotient, r, a, negate(multiply(quotient, r)), b);
  }
}

#define TORCHOPT_OPERATOR(symbol, function)                                                       \
  template <class A, class B,                                                                     \
            std::enable_if_t<is_scalar<A> && is_scalar<B> && !(is_number<A> && is_number<B>), int> = 0> \
  TORCHOPT_INLINE auto operator symbol(const A& a, const B& b) {                                  \
    return function(a, b);                                                                        \
  }
TORCHOPT_OPERATOR(+, add)
TORCHOPT_OPERATOR(-, subtract)
TORCHOPT_OPERATOR(*, multiply)
TORCHOPT_OPERATOR(/, divide)
#undef TORCHOPT_OPERATOR

// `a` where the condition holds, elsewhere zero with zero derivatives.
template <class A>
TORCHOPT_INLINE auto where(bool condition, const A& a) {
  if constexpr (is_zero<A>) {
    return a;
  } else if constexpr (is_number<A>) {
    return condition ? a : A(0);
  } else {
    return where_components(condition, a, Numbers<decltype(a.tangents)>{});
  }
}
template <class A, int... I>
TORCHOPT_INLINE auto where_components(bool condition, const A& a, Sequence<I...> directions) {
  return dual<level<A>>(where(condition, a.value), entries(directions, where(condition, get<I>(a.tangents))...));
}

template <class A>
TORCHOPT_INLINE auto sqrt(const A& a) {
  if constexpr (is_number<A>) {
    return std::sqrt(a);
  } else {
    auto root = sqrt(a.value);
    return chain_rule(root, where(number(a) > 0, reciprocal(add(root, root))), a);
  }
}

// -1, 0 or 1: a constant.
template <class A>
TORCHOPT_INLINE auto sign(const A& a) {
  auto x = number(a);
  using T = std::remove_const_t<decltype(x)>;
  return T(x > 0 ? 1 : 0) - T(x < 0 ? 1 : 0);
}

template <class A>
TORCHOPT_INLINE auto abs(const A& a) {
  if constexpr (is_number<A>) {
    return std::fabs(a);
  } else {
    return chain_rule(abs(a.value), sign(a), a);
  }
}

// What is negative becomes zero; the derivative at zero is one.
template <class A>
TORCHOPT_INLINE auto clip_negative(const A& a) {
  // Not `>= 0`, which would turn a NaN into a zero.
  return where(!(number(a) < 0), a);
}

template <class A, class B>
TORCHOPT_INLINE auto max(const A& a, const B& b) {
  auto x = number(a);
  auto y = number(b);
  using T = std::remove_const_t<decltype(x)>;
  if constexpr (is_number<A> && is_number<B>) {
    // A NaN wins, wherever it stands.
    return x > y || x != x ? x : y;
  } else {
    const T weight = x > y ? T(1) : (x < y ? T(0) : T(0.5));
    return weight * a + (T(1) - weight) * b;
  }
}

// What is stored: the number itself.
template <class T, class A>
TORCHOPT_INLINE T dense(const A& a) {
  if constexpr (is_zero<A>) {
    return T(0);
  } else {
    return T(a);
  }
}

}  // namespace torchopt
