"""Loss, accuracy and logits: weighted by sample, without a trace in the model."""

import math

import pytest
import torch
from small_nets import random_batches, same, small_model, snapshot
from torch import nn
from torch.nn.functional import cross_entropy

from trainables.training.evaluation import eval_mode, evaluate, joined, model_device, predict_logits, require_reiterable


def logits_as_images(logits):
    """Images of one pixel per class: nn.Flatten() is then a classifier with known logits."""
    return torch.tensor(logits, dtype=torch.float32)[:, :, None, None]


def test_values_by_hand():
    images = logits_as_images([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, 0.0]])
    found = evaluate(nn.Flatten(), [(images, torch.tensor([0, 1, 0]))])
    assert found.loss == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)
    assert found.accuracy == pytest.approx(200 / 3)
    assert (found.top5_accuracy, found.count) == (100, 3)


def test_top5_counts_labels_among_the_five_largest_logits():
    images = logits_as_images([[6.0, 5, 4, 3, 2, 1]] * 6)
    found = evaluate(nn.Flatten(), [(images, torch.arange(6))])
    assert found.accuracy == pytest.approx(100 / 6)
    assert found.top5_accuracy == pytest.approx(500 / 6)


def test_every_sample_weighs_the_same_however_it_is_batched():
    model = small_model("resnet8")
    batches = random_batches(3)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    uneven = evaluate(model, [(images[:1], labels[:1]), (images[1:], labels[1:])])
    whole = evaluate(model, batches)
    with torch.no_grad():
        logits = model(images)
    assert uneven.loss == pytest.approx(whole.loss, rel=1e-6)
    assert whole.loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    assert uneven.accuracy == whole.accuracy == 100 * (logits.argmax(1) == labels).sum().item() / len(labels)


def test_model_keeps_its_buffers_and_the_mode_of_every_part():
    model = small_model("resnet8").train()
    model.bn1.eval()
    before = snapshot(model)
    evaluate(model, random_batches())
    predict_logits(model, random_batches())
    assert same(before, snapshot(model))


def test_mode_is_restored_after_an_error():
    model = small_model("mlp").train()

    def fail():
        with eval_mode(model):
            assert not model.training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(module.training for module in model.modules())


def test_logits_are_ordinary_tensors_in_the_order_of_the_batches():
    model = small_model("resnet8")
    batches = random_batches()
    logits = predict_logits(model, batches)
    with torch.no_grad():
        expected = torch.cat([model(images) for images, _labels in batches])
    torch.testing.assert_close(logits, expected)
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    assert not logits.is_inference()
    torch.testing.assert_close(predict_logits(model, [images for images, _labels in batches]), logits)


def test_the_logits_of_an_evaluation_are_those_of_a_pass_of_their_own():
    model, batches, logits = small_model("resnet8"), random_batches(), []
    assert evaluate(model, batches, logits) == evaluate(model, batches)
    assert torch.equal(joined(logits), predict_logits(model, batches))
    assert not joined(logits).is_inference()


@pytest.mark.parametrize("measure", [evaluate, predict_logits])
def test_no_batches(measure):
    with pytest.raises(ValueError, match="at least one sample"):
        measure(nn.Flatten(), [])


def test_evaluation_needs_labels():
    with pytest.raises(ValueError, match="without labels"):
        evaluate(nn.Flatten(), [torch.zeros(2, 3, 1, 1)])


def test_one_shot_batches_are_told_from_those_that_can_be_read_again():
    require_reiterable([1], "a test")
    require_reiterable(range(3), "a test")
    with pytest.raises(ValueError, match="one-shot generator"):
        require_reiterable((index for index in range(3)), "a test")


def test_device_of_models_with_and_without_parameters():
    assert model_device(nn.Linear(1, 1, device="meta")).type == "meta"
    assert model_device(nn.BatchNorm1d(1, affine=False, device="meta")).type == "meta"
    assert model_device(nn.Flatten()).type == "cpu"
