"""The things in the world, each as a few solids in its own frame: x forward, y left, z up, origin
on the ground in the middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recon4d_ros.sim.solids import Skin, Solids, box, concatenate, cylinder, ellipsoid
from recon4d_ros.sim.textures import FACADES, Layer

CAR_COLORS = (
    (0.55, 0.55, 0.56),
    (0.7, 0.7, 0.7),
    (0.04, 0.04, 0.045),
    (0.1, 0.11, 0.12),
    (0.38, 0.03, 0.03),
    (0.03, 0.07, 0.28),
    (0.05, 0.16, 0.08),
    (0.5, 0.34, 0.05),
    (0.2, 0.22, 0.25),
    (0.35, 0.42, 0.5),
)
_ROLL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # z to the side: a wheel's axle
_DARK = (0.03, 0.03, 0.03)


@dataclass(frozen=True)
class Body:
    """What a thing that can move looks like. kind: car, van, truck, lorry, cyclist or pedestrian.
    variant: chooses shape and colours."""

    kind: str
    variant: int


@dataclass(frozen=True)
class Mover:
    """One mover at one time. pose: [4, 4] in world, on the ground; phase: of its stride,
    radians."""

    id: int
    body: Body
    pose: NDArray[np.float64]
    phase: float = 0.0


def build(body: Body, phase: float = 0.0) -> Solids:
    """The solids of a body. phase: radians of its stride or pedalling (people only)."""
    rng = np.random.default_rng([body.variant, 31])
    if body.kind == "pedestrian":
        return _pedestrian(rng, phase)
    if body.kind == "cyclist":
        return _cyclist(rng, phase)
    return {"car": _car, "van": _van, "truck": _truck, "lorry": _lorry}[body.kind](rng)


def extent(solids: Solids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tight box (low [3], high [3]) around solids in their frame: the round ones by their true
    extent, not by their corners."""
    low, high = solids.corners.min(1), solids.corners.max(1)
    centre = solids.corners.mean(1)
    axes = solids.frame[:, :, :3]  # rows: own axes in the common frame
    r = solids.radii
    ball = np.sqrt(((axes * r[..., None]) ** 2).sum(1))
    tube = r[:, 2:] * np.abs(axes[:, 2]) + r[:, :1] * np.sqrt(
        np.maximum(0.0, 1.0 - axes[:, 2] ** 2)
    )
    half = np.where((solids.kind == 1)[:, None], ball, tube)
    is_round = (solids.kind > 0)[:, None]
    return np.where(is_round, centre - half, low).min(0), np.where(
        is_round, centre + half, high
    ).max(0)


def _rgb(values: NDArray | tuple[float, ...]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _wheels(x_front: float, x_rear: float, half_width: float, radius: float) -> list[Solids]:
    tyre, hub = Skin(Layer.PAINT, _DARK, 200), Skin(Layer.WHEEL, (0.5, 0.5, 0.5), 0.0)
    return [
        cylinder((x, side * (half_width - 0.1), radius), radius, 0.23, tyre, hub, _ROLL)
        for x in (x_front, x_rear)
        for side in (-1, 1)
    ]


def _car(rng: np.random.Generator) -> Solids:
    length, width, height = rng.uniform(4.0, 4.7), rng.uniform(1.74, 1.86), rng.uniform(1.42, 1.68)
    color = CAR_COLORS[int(rng.integers(len(CAR_COLORS)))]
    paint = Skin(Layer.PAINT, color, 90)
    hatch = rng.random() < 0.5
    belt = 0.30 + 0.42 * (height - 0.3)
    body = box(
        (0, 0, 0.5 * (0.22 + belt)),
        (length, width, belt - 0.22),
        paint,
        {
            0: Skin(Layer.CAR_FRONT, color, 0),
            1: Skin(Layer.CAR_REAR, color, 0),
            2: Skin(Layer.CAR_SIDE, color, 0),
            3: Skin(Layer.CAR_SIDE, color, 0),
            5: Skin(Layer.PAINT, _DARK, 90),
        },
        taper=(0.975, 0.94, 0.0),
    )
    rear = -length / 2 + (0.12 if hatch else 0.75)
    front = length / 2 - rng.uniform(0.95, 1.15)
    cabin_length = front - rear
    top = 1.0 - (0.85 if hatch else 1.15) / cabin_length
    glass, side = Skin(Layer.GLASS_FRONT, color, 0), Skin(Layer.GLASS_SIDE, color, 0)
    cabin = box(
        (0.5 * (front + rear), 0, 0.5 * (belt + height)),
        (cabin_length, width * 0.92, height - belt),
        paint,
        {0: glass, 1: glass, 2: side, 3: side},
        taper=(top, 0.8, -0.16 if hatch else -0.02),
    )
    mirrors = [
        box((front - 0.35, s * (width / 2 + 0.02), belt + 0.1), (0.16, 0.2, 0.13), paint)
        for s in (-1, 1)
    ]
    return concatenate(
        [body, cabin, *_wheels(length / 2 - 0.82, -length / 2 + 0.86, width / 2, 0.32), *mirrors]
    )


def _van(rng: np.random.Generator) -> Solids:
    color = CAR_COLORS[int(rng.integers(4))]
    length, width, height = rng.uniform(4.9, 5.6), 1.95, rng.uniform(2.1, 2.45)
    paint, front = Skin(Layer.PAINT, color, 90), Skin(Layer.CAR_FRONT, color, 0)
    low = box(
        (0, 0, 0.65),
        (length, width, 0.8),
        paint,
        {
            0: front,
            1: Skin(Layer.CAR_REAR, color, 0),
            2: Skin(Layer.CAR_SIDE, color, 0),
            3: Skin(Layer.CAR_SIDE, color, 0),
        },
    )
    high = box(
        (-0.35, 0, 0.5 * (1.05 + height)),
        (length - 0.7, width * 0.97, height - 1.05),
        paint,
        {
            0: Skin(Layer.GLASS_FRONT, color, 0),
            1: Skin(Layer.GLASS_FRONT, color, 0),
            2: Skin(Layer.GLASS_SIDE, color, 0),
            3: Skin(Layer.GLASS_SIDE, color, 0),
        },
        taper=(0.88, 0.92, -0.25),
    )
    return concatenate([low, high, *_wheels(length / 2 - 0.9, -length / 2 + 1.0, width / 2, 0.35)])


def _truck(rng: np.random.Generator) -> Solids:
    color = CAR_COLORS[int(rng.integers(4, len(CAR_COLORS)))]
    length, width = rng.uniform(6.8, 7.8), 2.2
    paint, dark = Skin(Layer.PAINT, color, 90), Skin(Layer.METAL, (0.08, 0.08, 0.08), 90)
    cargo = Skin(Layer.CARGO, _rgb(rng.uniform(0.35, 0.7, 3)), 0)
    glass = Skin(Layer.GLASS_SIDE, color, 0)
    cab = box(
        (length / 2 - 0.9, 0, 1.4),
        (1.8, width, 1.9),
        paint,
        {0: Skin(Layer.GLASS_FRONT, color, 0), 2: glass, 3: glass},
        taper=(0.86, 0.94, -0.12),
    )
    load = box(
        (-0.95, 0, 1.95),
        (length - 1.95, width, 2.3),
        Skin(Layer.METAL, cargo.color, 64),
        {1: Skin(Layer.CAR_REAR, cargo.color, 0), 2: cargo, 3: cargo},
    )
    chassis = box((-0.2, 0, 0.6), (length - 0.6, 1.7, 0.4), dark)
    return concatenate(
        [cab, load, chassis, *_wheels(length / 2 - 1.1, -length / 2 + 1.6, width / 2, 0.42)]
    )


def _lorry(rng: np.random.Generator) -> Solids:
    """Tractor and semi-trailer, 13 to 16 m long and 4 m high: large plain sides."""
    color = CAR_COLORS[int(rng.integers(len(CAR_COLORS)))]
    length, width, top = rng.uniform(13.0, 16.0), 2.5, rng.uniform(3.7, 4.0)
    paint, dark = Skin(Layer.PAINT, color, 90), Skin(Layer.METAL, (0.06, 0.06, 0.06), 90)
    side = _rgb(rng.uniform(0.3, 0.8, 3))
    tarpaulin = Skin(Layer.PAINT if rng.random() < 0.4 else Layer.CARGO, side, 0)
    glass = Skin(Layer.GLASS_SIDE, color, 0)
    cab = box(
        (length / 2 - 1.1, 0, 2.0),
        (2.2, width, 3.0),
        paint,
        {0: Skin(Layer.GLASS_FRONT, color, 0), 2: glass, 3: glass},
        taper=(0.92, 0.96, -0.08),
    )
    rear = Skin(Layer.METAL, side, 64)
    load = box(
        (-1.4, 0, 0.5 * (1.15 + top)),
        (length - 2.8, width, top - 1.15),
        rear,
        {1: rear, 2: tarpaulin, 3: tarpaulin},
    )
    chassis = box((-0.4, 0, 0.85), (length - 1.2, 1.6, 0.5), dark)
    bumper = box(
        (-length / 2 + 0.1, 0, 0.75), (0.15, 2.3, 0.35), dark, {1: Skin(Layer.CAR_REAR, side, 0)}
    )
    guard = box((-1.0, 0, 0.8), (length * 0.4, width - 0.1, 0.6), dark)
    wheels = [
        *_wheels(length / 2 - 1.4, length / 2 - 4.3, width / 2, 0.5),
        *_wheels(-length / 2 + 2.0, -length / 2 + 3.4, width / 2, 0.5),
    ]
    return concatenate([cab, load, chassis, bumper, guard, *wheels])


def _pitched(angle: float) -> NDArray[np.float64]:
    """Rotation about y: positive swings the lower end of a hanging limb forward."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _limb(
    joint: tuple[float, float, float], length: float, thickness: float, angle: float, skin: Skin
) -> Solids:
    """A limb hanging from a joint, swung forward by `angle`."""
    rotation = _pitched(angle)
    centre = np.array(joint) + rotation @ np.array([0, 0, -length / 2])
    return box(centre, (thickness, thickness, length), skin, rotation=rotation)


def _pedestrian(rng: np.random.Generator, phase: float) -> Solids:
    height = rng.uniform(1.58, 1.9)
    coat = Skin(
        Layer.STRIPES if rng.random() < 0.3 else Layer.CLOTH, _rgb(rng.uniform(0.05, 0.6, 3)), 220
    )
    trousers = Skin(Layer.CLOTH, _rgb(rng.uniform(0.03, 0.2) * rng.uniform(0.8, 1.3, 3)), 220)
    skin = Skin(Layer.SKIN, _rgb(np.array((0.5, 0.32, 0.24)) * rng.uniform(0.45, 1.1)), 200)
    hair = Skin(Layer.CLOTH, (0.05, 0.04, 0.03), 300)
    hip, shoulder = 0.5 * height, 0.82 * height
    swing = 0.42 * np.sin(phase)
    head_radius = 0.075 * height * 0.9
    parts = [
        _limb((0, 0.09, hip), hip - 0.02, 0.15, swing, trousers),
        _limb((0, -0.09, hip), hip - 0.02, 0.15, -swing, trousers),
        box(
            (0, 0, 0.5 * (hip - 0.06 + shoulder)),
            (0.24, 0.42, shoulder - hip + 0.06),
            coat,
            taper=(0.9, 0.95, 0.0),
        ),
        _limb((0, 0.25, shoulder - 0.02), 0.36 * height, 0.1, -0.9 * swing, coat),
        _limb((0, -0.25, shoulder - 0.02), 0.36 * height, 0.1, 0.9 * swing, coat),
        ellipsoid(
            (0.01, 0, height - head_radius * 1.25),
            (head_radius, head_radius * 0.9, head_radius * 1.25),
            skin,
        ),
        ellipsoid(
            (-0.02, 0, height - head_radius * 1.0),
            (head_radius * 1.02, head_radius * 0.96, head_radius * 1.0),
            hair,
        ),
    ]
    if rng.random() < 0.4:
        parts.append(
            box(
                (-0.19, 0, 0.5 * (hip + shoulder)),
                (0.16, 0.3, 0.42),
                Skin(Layer.CLOTH, _rgb(rng.uniform(0.05, 0.5, 3)), 220),
            )
        )
    return concatenate(parts)


def _cyclist(rng: np.random.Generator, phase: float) -> Solids:
    coat = Skin(
        Layer.STRIPES if rng.random() < 0.5 else Layer.CLOTH, _rgb(rng.uniform(0.1, 0.7, 3)), 220
    )
    trousers = Skin(Layer.CLOTH, _rgb(rng.uniform(0.03, 0.2, 3)), 220)
    metal = Skin(Layer.METAL, _rgb(rng.uniform(0.05, 0.5, 3)), 200)
    tyre, disc = Skin(Layer.PAINT, _DARK, 200), Skin(Layer.WHEEL, (0.3, 0.3, 0.3), 0)
    skin, helmet = (
        Skin(Layer.SKIN, (0.5, 0.32, 0.24), 200),
        Skin(Layer.STRIPES, _rgb(rng.uniform(0.1, 0.8, 3)), 300),
    )
    kick = 0.35 * np.sin(phase)
    return concatenate(
        [
            cylinder((0.54, 0, 0.34), 0.34, 0.045, tyre, disc, _ROLL),
            cylinder((-0.54, 0, 0.34), 0.34, 0.045, tyre, disc, _ROLL),
            box((0.0, 0, 0.62), (0.95, 0.05, 0.07), metal),
            box((-0.2, 0, 0.66), (0.06, 0.05, 0.55), metal, rotation=_pitched(0.25)),
            box((0.46, 0, 0.68), (0.06, 0.05, 0.72), metal, rotation=_pitched(0.3)),
            box((0.36, 0, 1.03), (0.05, 0.52, 0.05), metal),
            box(
                (-0.04, 0, 1.2),
                (0.26, 0.4, 0.62),
                coat,
                rotation=_pitched(-0.55),
                taper=(0.85, 1.05, 0.0),
            ),
            _limb((-0.16, 0.11, 0.98), 0.72, 0.14, 0.4 + kick, trousers),
            _limb((-0.16, -0.11, 0.98), 0.72, 0.14, 0.4 - kick, trousers),
            _limb((0.08, 0.22, 1.4), 0.5, 0.09, 0.7, coat),
            _limb((0.08, -0.22, 1.4), 0.5, 0.09, 0.7, coat),
            ellipsoid((0.2, 0, 1.6), (0.11, 0.095, 0.14), skin),
            ellipsoid((0.19, 0, 1.66), (0.14, 0.11, 0.1), helmet),
        ]
    )


def tree(rng: np.random.Generator) -> Solids:
    """A street tree: trunk and a crown of leafy lumps."""
    height, radius = rng.uniform(5.0, 8.5), rng.uniform(1.3, 2.1)
    bark = Skin(Layer.BARK, (0.2, 0.15, 0.1), 160)
    green = (
        np.array((0.11, 0.19, 0.05))
        * rng.uniform(0.7, 1.4)
        * (1 + 0.3 * rng.uniform(-1, 1) * np.array((1, 0, 0)))
    )
    parts = [cylinder((0, 0, height * 0.39), rng.uniform(0.11, 0.2), height * 0.78, bark)]
    parts.append(
        ellipsoid(
            (0, 0, height - 0.3 * radius),
            (radius * 0.85, radius * 0.85, radius),
            Skin(Layer.LEAVES, _rgb(green), 120),
        )
    )
    for angle in np.arange(6) * 2 * np.pi / 6 + rng.uniform(0, 1):
        out, size = radius * rng.uniform(0.55, 0.8), radius * rng.uniform(0.45, 0.7)
        centre = (out * np.cos(angle), out * np.sin(angle), height - radius * rng.uniform(0.3, 1.1))
        parts.append(
            ellipsoid(
                centre,
                (size, size, size * 0.85),
                Skin(Layer.LEAVES, _rgb(green * rng.uniform(0.8, 1.25)), 120),
            )
        )
    return concatenate(parts)


def lamp() -> Solids:
    """A street lamp; +x is along the road, the arm points to +y."""
    metal = Skin(Layer.METAL, (0.25, 0.27, 0.27), 160)
    return concatenate(
        [
            cylinder((0, 0, 3.5), 0.07, 7.0, metal),
            cylinder((0, 0, 0.5), 0.11, 1.0, metal),
            box((0, 0.8, 7.0), (0.08, 1.8, 0.08), metal),
            box((0, 1.6, 6.95), (0.25, 0.55, 0.12), Skin(Layer.METAL, (0.6, 0.6, 0.55), 160)),
        ]
    )


def sign(rng: np.random.Generator) -> Solids:
    """A traffic sign facing -x (the traffic that comes along +x)."""
    metal = Skin(Layer.METAL, (0.35, 0.35, 0.36), 160)
    plate = Skin(Layer.SIGN, (0.5, 0.5, 0.5), 0)
    return concatenate(
        [
            cylinder((0.05, 0, 1.3), 0.035, 2.6, metal),
            box((0, 0, 2.35), (0.03, 0.62, 0.62), metal, {1: plate}),
        ]
    )


def bin_or_box(rng: np.random.Generator) -> Solids:
    """Street furniture: a bin, a switch cabinet or a letter box."""
    size = rng.uniform((0.4, 0.4, 0.9), (0.9, 0.7, 1.4))
    layer = Layer.PLANKS if rng.random() < 0.4 else Layer.METAL
    return box((0, 0, size[2] / 2), size.tolist(), Skin(layer, _rgb(rng.uniform(0.1, 0.5, 3)), 250))


def hedge(length: float, height: float, rng: np.random.Generator) -> Solids:
    """A hedge or a fence along x."""
    if rng.random() < 0.35:
        return box(
            (0, 0, height / 2), (length, 0.08, height), Skin(Layer.PLANKS, (0.3, 0.2, 0.12), 128)
        )
    if rng.random() < 0.4:
        return box((0, 0, 0.5), (length, 0.3, 1.0), Skin(Layer.BRICK, (0.4, 0.25, 0.18), 128))
    return box(
        (0, 0, height / 2),
        (length, 0.8, height),
        Skin(Layer.HEDGE, (0.08, 0.15, 0.05), 110),
        taper=(0.99, 0.8, 0),
    )


def building(width: float, depth: float, height: float, rng: np.random.Generator) -> Solids:
    """A house. Its front is the plane x = 0, facing -x; it stands at x in [0, depth], y in
    [-width/2, width/2]."""
    facade = FACADES[int(rng.integers(len(FACADES)))]
    tint = _rgb(0.5 * rng.uniform(0.75, 1.1) * rng.uniform(0.92, 1.08, 3))
    storeys = max(round(height / 3.2), 1)
    shop = rng.random() < 0.55
    ground = 3.2 if shop else 0.0
    top = ground + 3.2 * max(storeys - (1 if shop else 0), 1)
    wall = Skin(facade, tint, 40.0)
    roof_skin = Skin(
        Layer.ROOF,
        _rgb(
            np.array([(0.3, 0.12, 0.08), (0.12, 0.12, 0.13), (0.2, 0.15, 0.12)])[
                int(rng.integers(3))
            ]
        ),
        60,
    )
    parts = [
        box(
            (depth / 2, 0, 0.5 * (ground + top)), (depth, width, top - ground), wall, {4: roof_skin}
        )
    ]
    if shop:
        layer = Layer.SHOP_0 if rng.random() < 0.5 else Layer.SHOP_1
        # The tile is one storey high: stretched on the front, plain on the sides.
        parts.append(
            box(
                (depth / 2 - 0.1, 0, ground / 2),
                (depth + 0.2, width - 0.02, ground),
                Skin(Layer.PLASTER, tint, 40),
                {1: Skin(layer, (0.5, 0.5, 0.5), 0)},
            )
        )
    else:
        parts.append(
            box(
                (depth / 2 - 0.04, 0, 0.35),
                (depth + 0.08, width + 0.08, 0.7),
                Skin(Layer.BRICK, (0.25, 0.22, 0.2), 128),
            )
        )
    if rng.random() < 0.6:
        parts.append(
            box(
                (depth / 2, 0, top + 1.4),
                (depth + 0.5, width + 0.5, 2.8),
                roof_skin,
                taper=(0.15, 0.92, 0.0),
            )
        )
    else:
        parts.append(
            box(
                (depth / 2, 0, top + 0.3),
                (depth + 0.3, width + 0.3, 0.6),
                Skin(Layer.PLASTER, _rgb(np.array(tint) * 0.8), 40),
            )
        )
    if rng.random() < 0.6:
        for y in np.arange(-width / 2 + 2.2, width / 2 - 1.5, 3.2)[:: int(rng.integers(1, 3))]:
            for z in np.arange(ground + 3.2, top - 1.0, 3.2):
                parts.append(  # noqa: PERF401
                    box(
                        (-0.45, float(y), float(z) + 0.45),
                        (0.9, 2.0, 0.9),
                        Skin(Layer.PLANKS, tint, 100),
                    )
                )
    return concatenate(parts)


def guard_rail(length: float) -> Solids:
    """A steel guard rail along x, its profile towards both sides."""
    steel = Skin(Layer.METAL, (0.42, 0.43, 0.44), 60)
    posts = [
        box((x, 0, 0.38), (0.1, 0.12, 0.76), steel)
        for x in np.arange(-length / 2 + 2, length / 2, 4)
    ]
    return concatenate([box((0, 0, 0.62), (length, 0.2, 0.31), steel), *posts])


def delineator() -> Solids:
    """A white post with a black band at the road's side."""
    white, black = Skin(Layer.PLASTER, (0.75, 0.75, 0.75), 100), Skin(Layer.PAINT, _DARK, 100)
    return concatenate(
        [box((0, 0, 0.5), (0.1, 0.12, 1.0), white), box((0, 0, 0.82), (0.11, 0.13, 0.2), black)]
    )


def gantry(rng: np.random.Generator, low: float, high: float) -> Solids:
    """A sign gantry across y from low to high, its plates facing -x."""
    steel = Skin(Layer.METAL, (0.35, 0.36, 0.38), 60)
    plate = Skin(Layer.SHOP_0, (0.1, 0.2, 0.6), 0)
    parts = [cylinder((0, y, 3.2), 0.18, 6.4, steel) for y in (low, high)]
    parts.append(box((0, 0.5 * (low + high), 6.3), (0.4, high - low, 0.5), steel))
    parts += [
        box((-0.35, y, 6.6), (0.12, *rng.uniform((2.6, 1.6), (4.0, 2.6))), steel, {1: plate})
        for y in np.arange(low + 3.5, high - 2.0, 4.5)
    ]
    return concatenate(parts)


def slab(start: tuple[float, float, float], size: tuple[float, float, float], skin: Skin) -> Solids:
    """A box whose lower face's middle is at `start`."""
    return box((start[0], start[1], start[2] + size[2] / 2), size, skin)
