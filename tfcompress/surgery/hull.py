"""Trade-offs: the lower convex hull of what things cost."""

Points = list[tuple[float, float]]


def lower_hull(points: Points) -> Points:
    """The lower convex hull of points that are sorted by their first coordinate."""
    corners: Points = []
    for point in points:
        while len(corners) > 1 and _turns_down(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _turns_down(a, b, c) -> bool:
    """Whether b lies on the line from a to c, or above it."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
