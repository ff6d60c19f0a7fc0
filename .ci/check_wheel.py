"""Check that the one wheel in a folder holds the bundled data, the type marker and no tests."""

import sys
import zipfile
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob("*.whl")
packed = set(zipfile.ZipFile(wheel).namelist())
wanted = {
    path.as_posix()
    for path in Path("spherediff").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
missing = sorted(wanted - packed)
foreign = sorted(name for name in packed if not name.startswith("spherediff"))
if missing or foreign:
    sys.exit(f"{wheel.name}: missing {missing}, does not belong {foreign}")
print(f"{wheel.name}: {len(packed)} files, {wheel.stat().st_size / 1e6:.2f} MB, nothing missing")
