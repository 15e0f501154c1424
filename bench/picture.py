"""The picture of the docs: what a value costs, by its size."""

import math
import statistics

WIDTH, HEIGHT = 960, 430
PANELS = {"encrypt": 70, "decrypt": 545}  # left edge
PANEL_WIDTH, TOP, BOTTOM = 385, 70, 350
# Name in the results → what the picture calls it, colour, dashes.
LINES = {
    "fieldcrypt": ("pg_fieldcrypt", "#0b6e4f", ""),
    "bare AES-GCM": ("copy + one AES-GCM call, key ready", "#888888", "5 4"),
    "pgcrypto encrypt_iv": ("pgcrypto encrypt_iv (AES-CBC)", "#c2571a", ""),
    "pgcrypto pgp_sym": ("pgcrypto pgp_sym_encrypt", "#8e2f6b", ""),
    "pgsodium": ("pgsodium, by key id", "#2f5d8e", ""),
    "column_encrypt": ("column_encrypt", "#a08a00", ""),
}


def draw(results):
    sizes = list(results["fields"])
    lowest, highest = 0.1, 3_000

    def x(left, size):
        share = (math.log(size) - math.log(sizes[0])) / (math.log(sizes[-1]) - math.log(sizes[0]))
        return left + share * PANEL_WIDTH

    def y(figure):
        share = (math.log(figure) - math.log(lowest)) / (math.log(highest) - math.log(lowest))
        return BOTTOM - share * (BOTTOM - TOP)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(70, 24, "What one value costs, by its size", size=16, weight="bold"),
        text(70, 42, "µs of one backend, net of the scan; both scales logarithmic; " + results["about"]["processors"]),
    ]
    for operation, left in PANELS.items():
        out.append(text(left, TOP - 8, operation, weight="bold"))
        for power in range(-1, 4):
            height = y(10.0 ** power)
            out.append(line(left, height, left + PANEL_WIDTH, height, "#dddddd"))
            out.append(text(left - 6, height + 4, f"{10.0 ** power:g}", anchor="end"))
        for size in sizes:
            out.append(text(x(left, size), BOTTOM + 18, label(size), anchor="middle"))
        for name, (_, colour, dashes) in LINES.items():
            points = [
                f"{x(left, size):.1f},{y(max(lowest, statistics.median(by_operation[operation][name]))):.1f}"
                for size, by_operation in results["fields"].items() if name in by_operation[operation]
            ]
            if points:
                out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"'
                           f' stroke-width="2" stroke-dasharray="{dashes}"/>')
                out += [f'<circle cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="2.5" fill="{colour}"/>'
                        for point in points]
    shown = [name for name in LINES if any(name in sized["encrypt"] for sized in results["fields"].values())]
    for index, name in enumerate(shown):
        title, colour, dashes = LINES[name]
        column, row = index % 3, index // 3
        at, height = 70 + column * 300, BOTTOM + 46 + row * 20
        out.append(line(at, height - 4, at + 24, height - 4, colour, dashes, 2))
        out.append(text(at + 30, height, title))
    out.append("</svg>\n")
    return "\n".join(out)


def label(size):
    if size >= 1 << 20:
        return f"{size >> 20} MB"
    return f"{size >> 10} KB" if size >= 1 << 10 else f"{size} B"


def text(x, y, words, anchor="start", size=12, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
            f' fill="#222222">{words}</text>')


def line(x1, y1, x2, y2, colour, dashes="", width=1):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
            f' stroke-width="{width}" stroke-dasharray="{dashes}"/>')
