# SPDX-License-Identifier: Apache-2.0
# Finds pybind11, header-only, which pip puts into the isolated build environment.
# Keep the range equal to the one under build-system.requires in pyproject.toml.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)

if(pybind11_VERSION VERSION_LESS "3.0" OR pybind11_VERSION VERSION_GREATER_EQUAL "4")
  message(FATAL_ERROR
    "torchopt needs pybind11 >= 3.0 and < 4, but found ${pybind11_VERSION} in ${pybind11_DIR}.")
endif()
message(STATUS "torchopt: pybind11 ${pybind11_VERSION}")
