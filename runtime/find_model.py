"""Resolution of a path on the command line to a model."""

from pathlib import Path

from clada.contract.artifact import in_place_name
from clada.contract.engine_record import ENGINE_SUFFIX
from clada.errors import CladaError


def find_model(path: Path) -> Path:
    """Find the one model in a folder: its .onnx file, or else its .engine; another path is returned unchanged.

    Raises:
        CladaError: The folder holds none, or several.
    """
    if not path.is_dir():
        return path
    graphs = sorted(path.glob("*.onnx"))
    derived = {in_place_name(graph) for graph in graphs}
    models = [graph for graph in graphs if graph.name not in derived] or sorted(path.glob(f"*{ENGINE_SUFFIX}"))
    if not models:
        raise CladaError(f"the folder {path} holds no .onnx file: give one that `clada export` wrote")
    if len(models) > 1:
        raise CladaError(f"the folder {path} holds {', '.join(model.name for model in models)}: give one of them")
    return models[0]
