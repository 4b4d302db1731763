"""Faults in the bytes of a file, drawn by a `random.Random`."""

import struct
import zipfile


def opcode(generator):
    """An opcode with a plausible argument."""
    number, size = generator.randrange(8), struct.pack("<I", generator.choice([0, 3, 2**31 - 1]))
    return generator.choice(
        [
            *(b"(", b")", b"]", b"}", b"0", b"1", b"2", b"N", b"t", b"a", b"e", b"s", b"u", b"d", b"l", b"b", b"R", b"\x81", b"Q"),
            *(b"\x85", b"\x86", b"\x87", b"\x88", b"\x94", b".", b"K\x01", b"M\x01\x02", b"h" + bytes([number]), b"q" + bytes([number])),
            *(b"j" + size, b"r" + size, b"X" + size + b"abc", b"B" + size + b"abc", b"\x8b" + size, b"\x8a\x08" + bytes(8)),
            *(b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cos\nsystem\n", b"Vabc\n", b"I5\n", b"(oios\nsystem\n", b"\x8f", b"\x90"),
        ]
    )  # fmt: skip


def mutated(content, generator, other):
    """`content` with one to four faults."""
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at = generator.randrange(len(content) + 1)
        end = min(len(content), at + generator.choice([1, 2, 8, 100]))
        kind = generator.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at:end]
        elif kind == 3:
            content[at:at] = content[at:end] * generator.choice([1, 50])
        elif kind == 4:
            content[at:at] = b"".join(opcode(generator) for _ in range(generator.randrange(1, 12)))
        elif kind == 5:
            content[at:end] = generator.randbytes(end - at)
        else:
            content[at:at] = other[(start := generator.randrange(len(other))) : start + 40]
    return bytes(content)


def zipped(path, content, generator, other):
    """A checkpoint with faults in one of its records, so that they reach what is behind the checksums of the archive."""
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = generator.choice([name for name in records if name.endswith(("data.pkl", "/0", "byteorder"))])
    records[name] = mutated(records[name], generator, other)
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in records.items():
            archive.writestr(name, held)
