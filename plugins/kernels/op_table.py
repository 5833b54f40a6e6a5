"""Writes the C++ header that describes the ops to the native code; run by CMake."""

import argparse
import sys
from pathlib import Path

# Run by CMake, with the folder in which `clada.plugins` is found: these sources, whatever is installed.
if __name__ == "__main__":
    sys.path.insert(0, sys.argv[2])

from clada.ops import DOMAIN, OPS, OPS_OF_CPUS, VERSION
from clada.ops.activations import ACTIVATIONS
from clada.ops.record import Attribute, Op, Tensor


def _tensors(name: str, specs: tuple[Tensor, ...]) -> str:
    rows = ", ".join(
        f'{{"{spec.name}", "{spec.dtype}", "{",".join(spec.axes)}", {spec.least}, {str(spec.narrow).lower()}}}'
        for spec in specs
    )
    names = ", ".join(spec.name for spec in specs)
    return f"""  struct {name} {{
    enum : size_t {{ {names}, count }};
    static constexpr TensorSpec specs[] = {{{rows}}};
  }};"""


def _attributes(specs: tuple[Attribute, ...]) -> str:
    types = [type(spec.default).__name__ for spec in specs]
    choices = [",".join(map(str, spec.choices)) for spec in specs]
    rows = ", ".join(
        f'{{"{spec.name}", "{name}", "{allowed}"}}' for spec, name, allowed in zip(specs, types, choices, strict=True)
    )
    names = ", ".join([*(spec.name for spec in specs), "count"])
    # C++ has no array of nothing.
    table = f"AttributeSpec specs[] = {{{rows}}}" if specs else "const AttributeSpec* specs = nullptr"
    return f"""  struct Attr {{
    enum : size_t {{ {names} }};
    static constexpr {table};
  }};"""


def _op(op: Op) -> str:
    return f"""
struct {op.name} {{
  static constexpr const char* name = "{op.name}";
{_tensors("In", op.inputs)}
{_tensors("Out", op.outputs)}
{_attributes(op.attributes)}
}};
"""


def header() -> str:
    """Content of the header: the domain and its version, the activations, and each op's signature."""
    return f"""// Generated from clada/ops; do not edit.
#pragma once
#include <cstddef>
#include <cstdint>

namespace clada {{

inline constexpr const char* kDomain = "{DOMAIN}";
inline constexpr int kVersion = {VERSION};

enum class Activation {{ {", ".join(ACTIVATIONS)} }};
inline constexpr const char* kActivations[] = {{{", ".join(f'"{name}"' for name in ACTIVATIONS)}}};

// A tensor's name, its type ("T" for the floating-point type of the op), its axes, joined by commas, the smallest size
// of each of them, and whether it may be bfloat16 where T is float32.
struct TensorSpec {{
  const char *name, *dtype, *axes;
  int64_t least;
  bool narrow;
}};
// An attribute's name, its type ("str", "int" or "float") and what it may be, joined by commas, empty for anything.
struct AttributeSpec {{
  const char *name, *type, *choices;
}};
namespace ops {{
{"".join(map(_op, [*OPS.values(), *OPS_OF_CPUS.values()]))}
}}  // namespace ops
}}  // namespace clada
"""


def main() -> None:
    """Write the header to the path given, if it differs from the existing one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("packages", help="folder in which clada.plugins is found")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != header():
        path.write_text(header(), encoding="utf-8")


if __name__ == "__main__":
    main()
