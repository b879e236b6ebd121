"""How many nodes a step can be spread over: a calculation of the time that averaging gradients takes. Nothing is run.

    python -m benchmarks.averaging

A ring of W workers sends each gradient 2 (W - 1) / W times through every link (Patarasuk and Yuan, 2009), in 2 (W - 1)
rounds. It begins while the last backward pass still computes. docs/averaging.md has the assumptions, and these tables.
"""

from __future__ import annotations

from dataclasses import dataclass

PARAMETERS = {"25 M": 25e6, "85 M": 85e6, "300 M": 300e6}
LINKS = {"10 Gb/s": 10e9, "25 Gb/s": 25e9, "100 Gb/s": 100e9, "NVLink": 3.6e12}
"""Bits a second that a worker sends; NVLink of an H100 450 GB/s in each direction."""
ROUND_SECONDS = {"NVLink": 3e-6}
ETHERNET_ROUND_SECONDS = 30e-6
STEPS = (0.1, 0.3, 1.0)
"""Seconds of a step without averaging."""
LAST_BACKWARD = 2 / 7
"""Share of a step that its last backward pass is, in which averaging hides: of seven forward passes' work, source and
mixture take three each, the teacher one."""
LARGEST = 4096
"""Workers beyond which nothing is asked."""


@dataclass(frozen=True)
class Averaging:
    """The average of a network's gradients over workers.

    Args:
        parameters: of the network.
        bits: that a worker sends in a second.
        round_seconds: that a message takes beside its bits.
        bytes_each: of a gradient; 2 in bfloat16.
    """

    parameters: float
    bits: float
    round_seconds: float = ETHERNET_ROUND_SECONDS
    bytes_each: int = 4

    def seconds(self, workers: int) -> float:
        """That the average takes."""
        sent = 2 * (workers - 1) / workers * self.parameters * self.bytes_each * 8
        return sent / self.bits + 2 * (workers - 1) * self.round_seconds

    def efficiency(self, workers: int, step: float) -> float:
        """Share of a step of `step` seconds that is not spent waiting for the average."""
        return step / (step + max(0.0, self.seconds(workers) - LAST_BACKWARD * step))

    def most_workers(self, step: float, efficiency: float = 0.9) -> int:
        """The most workers, up to `LARGEST`, whose steps are that efficient; 1 where two are not."""
        return max((w for w in range(1, LARGEST + 1) if self.efficiency(w, step) >= efficiency), default=1)


def table(bytes_each: int = 4) -> list[str]:
    """Rows in Markdown: for each link the milliseconds of an average over 8 workers, and `most_workers` by step."""
    rows = [f"| parameters | {' | '.join(LINKS)} |", "|---" * (1 + len(LINKS)) + "|"]
    for name, parameters in PARAMETERS.items():
        cells = []
        for link, bits in LINKS.items():
            made = Averaging(parameters, bits, ROUND_SECONDS.get(link, ETHERNET_ROUND_SECONDS), bytes_each)
            most = (made.most_workers(step) for step in STEPS)
            words = ", ".join("any" if number == LARGEST else str(number) for number in most)
            cells.append(f"{made.seconds(8) * 1e3:.0f} ms: {words}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    for bytes_each in (4, 2):
        print(f"\n{8 * bytes_each} bits a gradient:\n", *table(bytes_each), sep="\n")
