import pytest
import torch

from finetune.objectives import positive_mask


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_definition_pair_by_pair(make_batch, seed):
    random = torch.Generator().manual_seed(seed)
    size = 12
    images, captions, labels = (
        torch.randint(-1 if low else 0, 5, (size,), generator=random).tolist() for low in (0, 0, 1)
    )
    mask = positive_mask(make_batch(size, images, captions, labels))
    for i in range(size):
        for j in range(size):
            both = labels[i] >= 0 and labels[j] >= 0
            same = labels[i] == labels[j] if both else images[i] == images[j]
            assert mask[i, j] == (captions[i] == captions[j] or same)
    assert mask.diagonal().all()
    assert mask.equal(mask.T)


def test_equal_labels_are_positives_in_a_label_table(make_batch):
    mask = positive_mask(make_batch(3, labels=[4, 4, 0]))
    assert mask.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_equal_captions_are_positives_whatever_the_labels(make_batch):
    mask = positive_mask(make_batch(3, captions=[7, 7, 8], images=[0, 0, 0], labels=[0, 1, 2]))
    assert mask.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_shared_captions_and_images_are_positives_but_not_through_a_third_row(make_batch):
    mask = positive_mask(make_batch(3, images=[0, 0, 1], captions=[0, 1, 1]))
    assert mask.tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_unique_rows_are_positives_of_themselves_only(make_batch):
    assert positive_mask(make_batch(5)).equal(torch.eye(5, dtype=torch.bool))


@pytest.mark.parametrize("seed", range(5))
def test_of_several_labels_a_text_is_true_of_the_images_that_have_its_label(make_batch, seed):
    random = torch.Generator().manual_seed(seed)
    targets = (torch.rand(9, 4, generator=random) < 0.4).tolist()
    targets[3] = [False] * 4
    named = torch.randint(0, 4, (9,), generator=random).tolist()
    mask = positive_mask(make_batch(9, images=[0] * 9, captions=[0] * 9, labels=named, targets=targets))
    for i in range(9):
        for j in range(9):
            assert mask[i, j] == targets[i][named[j]]
    assert not mask[3].any()
