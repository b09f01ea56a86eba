"""Run by the Python of a clean environment: the installed wheel is what is imported, and it holds what it should."""

import importlib
import pkgutil
import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"pipeline", "stages"}, tops
    assert any(name.endswith("licenses/LICENSE") for name in names), "LICENSE is missing"
    here = Path(sys.prefix).resolve()
    for package in ("pipeline", "stages"):
        assert f"{package}/py.typed" in names
        module = importlib.import_module(package)
        assert here in Path(str(module.__file__)).resolve().parents, f"{package} comes from {module.__file__}, not from the wheel"
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            importlib.import_module(found.name)
    assert not {"torch", "cv2", "ray"} & set(sys.modules), "importing every submodule imported torch, cv2 or ray"


main(sys.argv[1])
