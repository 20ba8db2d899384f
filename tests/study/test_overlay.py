import io

import numpy as np
from matplotlib.image import imread

from voxprior.study import overlay


def scan():
    image = np.zeros((20, 30, 40), np.int16)
    image[4:16, 5:25, 5:35] = 2000
    labels = np.zeros(image.shape, np.uint8)
    labels[8:12, 10:16, 20:30], labels[14, 12, 25] = 1, 3
    return image, labels


def test_a_picture_shows_the_planes_with_most_labels_in_the_classes_colours():
    image, labels = scan()
    picture = imread(io.BytesIO(overlay.draw(image, 4096.0, labels, (3.0, 1.0, 1.0), ["liver", "spleen", "tumour"])))
    colours = {tuple(np.round(pixel, 2)) for pixel in picture[..., :3].reshape(-1, 3)}
    near = [min(np.abs(np.array(c) - overlay.colour(n)).max() for c in colours) for n in (1, 2, 3)]
    assert near[0] < 0.02
    assert near[1] > 0.05  # there is none of it
    assert picture.shape[1] > picture.shape[0] > 200


def test_nothing_found_is_drawn_too():
    image, labels = scan()
    assert overlay.draw(image, 4096.0, labels * 0, (3.0, 1.0, 1.0), ["liver"]).startswith(b"\x89PNG")


def test_colours_of_many_classes_differ():
    colours = np.array([overlay.colour(number) for number in range(1, 31)])
    apart = np.abs(colours[:, None] - colours[None]).max(-1) + np.eye(30)
    assert apart.min() > 0.04


def test_the_head_is_on_top():
    image, labels = scan()
    ids = np.zeros_like(labels)
    ids[18, 15, 20] = 1
    plane, _ = overlay._plane(image, ids, 1, 15)
    assert plane.shape == (20, 40)
    assert overlay._plane(image, ids, 1, 15)[1][1, 20] == 1
    assert overlay._plane(image, ids, 0, 18)[1][15, 20] == 1
