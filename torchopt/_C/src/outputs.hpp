// SPDX-License-Identifier: Apache-2.0
// New tensors for the results of a call.
#pragma once

#include "columns.hpp"

namespace torchopt {

constexpr int widest = -1;

// Makes the tensors of an output column, whose cells are then theirs.
//
// like: the input column whose dtypes they have, or `widest` for the widest dtype among the rule's own inputs.
py::list make_column(Columns& columns, int output, int like);

}  // namespace torchopt
