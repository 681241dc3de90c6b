// SPDX-License-Identifier: Apache-2.0
// One call of the engine: from columns of Python tensors to columns of Python tensors.
#pragma once

#include "tensors.hpp"

namespace torchopt {

// Runs a kernel over the leaves of a tree.
//
// rule, order: which kernel, see catalogue.hpp.
// inputs:  a column for each input of the kernel: a sequence of tensors, one for each leaf, or None for zeros. A single
//          tensor may be None too.
// outputs: for each output, None if it is not wanted; a sequence of tensors to write into; the number of the input
//          column that new tensors should be like; or -1 for tensors in the widest dtype among a rule's own inputs.
// coefs:   the numbers that elements share, row after row, as floats, or a float64 tensor on the leaves' device.
// rows:    which row each leaf takes, or None if there is one.
// threads: at most so many.
// in_place: whether the outputs are tensors that belong to others. Then columns are lists of one length, no tensor of
//           them may be missing or read-only, and autograd learns which tensors have changed.
//
// Returns a tuple of the output columns (lists, or None) and the sums (a list of floats, a tensor on CUDA, or None); or a
// string that says why the engine cannot do this, before anything is changed.
py::object run(int rule, int order, const py::sequence& inputs, const py::sequence& outputs, const py::object& coefs,
               const py::object& rows, int threads, bool in_place);

// Name, order, and per order the numbers of inputs, outputs, coefs and sums of every rule.
py::dict catalogue();

}  // namespace torchopt
