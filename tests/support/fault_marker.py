"""Arguments of `@pytest.mark.fault`, written to the XML of a run for scripts/fault_table.py."""

import pytest


def fault_marker(area: str, kind: str, now: str) -> dict[str, str]:
    """Arguments of the marker by name."""
    return {"area": area, "kind": kind, "now": now}


def write_markers(items: list[pytest.Item]) -> None:
    """Give each test its marker's words as properties."""
    for item in items:
        for marker in item.iter_markers("fault"):
            values = fault_marker(*marker.args, **marker.kwargs)
            item.user_properties += [(f"fault {name}", value) for name, value in values.items()]
