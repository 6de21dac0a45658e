"""Machine code of compiled objects: functions, loops, and what an instruction does, for the tools beside this file.

The disassembler is the toolkit's cuobjdump and nvdisasm; where they are not, both are fetched from PyPI into build/disassembler.
"""
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.a-z]*)([^;]*);")
WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
FETCHED = Path(__file__).resolve().parents[2] / "build" / "disassembler"


def cuobjdump():
    for found in (shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"):
        if found and Path(found).exists() and Path(found).with_name("nvdisasm").exists():
            return Path(found)
    if not (FETCHED / "complete").exists():
        FETCHED.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--timeout", "30",
                   "--dest", FETCHED, "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"]
        if subprocess.run(command).returncode:
            print("no cuobjdump in the CUDA toolkit, and PyPI did not give it: machine code is not looked at", file=sys.stderr)
            sys.exit(2)
        for wheel in FETCHED.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(FETCHED)
        for name in ("cuobjdump", "nvdisasm"):
            next(FETCHED.rglob(name)).chmod(0o755)
        (FETCHED / "complete").touch()
    return next(FETCHED.rglob("cuobjdump"))


def functions(path, arch):
    """[(name, [(address, opcode, operands)])] of an object's code for arch."""
    if not Path(path).is_file():
        sys.exit(f"{path}: no such object; make BACKEND=cuda PRECISION=bf16 ARCHS=90a builds those of the engine")
    tool = cuobjdump()
    listing = subprocess.run([tool, "-sass", "-arch", arch, path], capture_output=True, text=True, env={"PATH": str(tool.parent)})
    if listing.returncode:
        sys.exit(f"{path}: cuobjdump finds no {arch} code in it: {' '.join(listing.stderr.split())}")
    found = []
    for line in listing.stdout.splitlines():
        if "Function :" in line:
            found.append((line.split("Function :")[1].strip(), []))
        elif match := INSTRUCTION.match(line):
            found[-1][1].append((int(match[1], 16), match[2], match[3]))
    names = demangled([name for name, _ in found])
    return [(name, code) for name, (_, code) in zip(names, found)]


def demangled(names):
    tool = shutil.which("c++filt")
    if tool:
        names = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True).stdout.splitlines()
    return [re.sub(r"\(anonymous namespace\)::|^void |(?<=>)\(.*|(?<=kernel)\(.*", "", name) for name in names]


def regions(code):
    """The function's loops by backward branches, inner ones first and taken out of the outer ones, then the rest: (what, code)."""
    spans = set()
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            spans.add((int(target[1], 16), address))
    taken = set()
    for start, end in sorted(spans, key=lambda span: span[1] - span[0]):
        body = [i for i in code if start <= i[0] <= end and i[0] not in taken]
        taken.update(i[0] for i in body)
        yield f"loop at {start:#x}", body
    yield "outside of loops", [i for i in code if i[0] not in taken and i[1] != "NOP"]


def width(opcode):
    """Bytes a thread's load or store moves."""
    return next((WIDTH[part] for part in opcode.split(".") if part in WIDTH), 4)
