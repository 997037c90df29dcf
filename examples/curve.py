"""A curve of rewards as a picture: SVG without anything outside it, in light and in dark."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 118, 34, 38  # of the frame; at the right there is room for figures
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #57606a } .title { font-size: 14px; fill: #1f2328 }
  .page { fill: #ffffff } .grid { stroke: #d0d7de } .each { fill: #0969da; opacity: .3 }
  .mean { fill: none; stroke: #0969da; stroke-width: 2.5 } .held { fill: #bc4c00 }
  text.held { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 } .title { fill: #f0f6fc } .page { fill: #0d1117 }
    .grid { stroke: #30363d }
    .each { fill: #58a6ff } .mean { stroke: #58a6ff } .held { fill: #f0883e }
  }
"""


def svg(rewards: Sequence[float], before: float, after: float, title: str) -> str:
    """Each step's mean reward, 0 to 1, as a dot, and the mean of those around it as a line; at the
    ends the mean on held-out prompts, before the first step and after the last."""
    steps = len(rewards)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(steps, 1)

    def y(reward: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * reward

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}: from {before:.2f} to {after:.2f}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        lines.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:g}</text>'
        )
    every = next((n for n in (5, 10, 20, 50, 100, 200, 500) if steps <= 8 * n), 1000)
    for step in range(0, steps + 1, every):
        lines.append(
            f'<text x="{x(step):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{step}</text>'
        )
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step</text>')
    lines += [
        f'<circle class="each" cx="{x(i + 0.5):.1f}" cy="{y(reward):.1f}" r="2.5"/>'
        for i, reward in enumerate(rewards)
    ]
    line = " ".join(f"{x(i + 0.5):.1f},{y(reward):.1f}" for i, reward in enumerate(smooth(rewards)))
    lines.append(f'<polyline class="mean" points="{line}"/>')
    for step, reward in ((0, before), (steps, after)):
        at = y(reward)
        lines.append(f'<circle class="held" cx="{x(step):.1f}" cy="{at:.1f}" r="5"/>')
        place = f'x="{x(step) + 12:.1f}" y="{at + 4:.1f}"'
        lines.append(f'<text class="held" {place}>held out {reward:.2f}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def smooth(values: Sequence[float], around: int = 4) -> list[float]:
    """Each value's mean with its neighbours."""
    near = [values[max(i - around, 0) : i + around + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in near]
