"""What a compiled program sends between devices, read from its text."""

import collections
import re

COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
COLLECTIVE = re.compile(r" = (.*?) (all-\w+(?:-\w+)?|reduce-scatter|collective-\w+?)(?:-start)?\(")
SHAPE = re.compile(r"\w+\[[\d,]*\]")


def collectives(text: str) -> collections.Counter:
    """How often each (kind, shape) is run, e.g. {("all-reduce", "f32[8,64]"): 3}; bodies of loops count their length.

    A collective of several arrays counts once for each.
    """
    bodies, entry, lines = {}, None, []
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            lines = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        lines.append(line)

    def count(name: str) -> collections.Counter:
        found = collections.Counter()
        for line in bodies[name]:
            if match := COLLECTIVE.search(line):
                found.update((match[2], shape) for shape in SHAPE.findall(match[1]))
            if " while(" in line:
                times = int(re.search(r'"known_trip_count":\{"n":"(\d+)"', line)[1])
                for key, number in count(re.search(r"body=%?([\w.-]+)", line)[1]).items():
                    found[key] += times * number
            elif " call(" in line:
                found.update(count(re.search(r"to_apply=%?([\w.-]+)", line)[1]))
        return found

    return count(entry)
