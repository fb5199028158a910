import torch

from reptool.demo.data import load_digits


def test_every_image_is_used_once_and_scaled_to_one():
    digits = load_digits()
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    pixels = torch.cat([digits.train_images, digits.test_images])
    assert pixels.min() == 0
    assert pixels.max() == 1
    assert len(digits.train_labels) == 1437
    assert len(digits.test_labels) == 360


def test_every_class_has_its_share_of_the_test_images():
    digits = load_digits(test_fraction=0.25)
    train, test = digits.train_labels.bincount(), digits.test_labels.bincount()
    assert len(test) == 10
    assert ((test / (train + test) - 0.25).abs() < 0.01).all()


def test_the_seed_alone_chooses_the_split():
    once, again, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    assert torch.equal(once.test_images, again.test_images)
    assert not torch.equal(once.test_images, other.test_images)
