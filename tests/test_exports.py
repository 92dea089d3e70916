import inspect
import subprocess
import sys

import omnimix as om
from omnimix.core.method import Method
from omnimix.core.operation import Saliency
from omnimix.samples import objective, operation, pairing, ratio, saliency


def test_methods_their_functions_and_saliency_are_to_be_had_from_the_package():
    missing = []
    for room in (objective, operation, pairing, ratio, saliency):
        for name in room.__all__:
            value = getattr(room, name)
            made = inspect.isclass(value) and issubclass(value, (Method, Saliency))
            mixes = inspect.isfunction(value) and inspect.signature(value).return_annotation == "Mixed"
            if (made or mixes) and getattr(om, name, None) is not value:
                missing.append(name)
    assert not missing


def test_importing_the_package_is_light():
    heavy = ("sklearn", "scipy", "pandas", "lightning_fabric", "torchvision", "timm", "PIL", "pydantic", "joblib")
    code = f"import sys, omnimix; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
