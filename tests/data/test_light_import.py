import subprocess
import sys


def test_importing_the_data_and_networks_rooms_is_light() -> None:
    heavy = ("pandas", "pyarrow", "sklearn", "PIL", "timm", "scipy")
    code = f"import sys, omnimix.data, omnimix.networks; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
