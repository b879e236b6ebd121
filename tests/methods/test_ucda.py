"""UCDA: which bank each contrast is with, whose labels are expanded, and what enters the banks when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toy import CLASSES, METHODS, collect_frozen, make_batches, make_stage, make_state

from udaseg.components.pseudo_label import nearest_label
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.pixel_pair import flatten, memory_contrast
from udaseg.methods.ucda import UCDA
from udaseg.types import IGNORE


def made(**settings: object) -> UCDA:
    config = replace(METHODS["ucda"], **settings)  # type: ignore[type-var]
    return make_state(replace(make_stage("ucda"), method=config)).method.eval()  # type: ignore[return-value]


def test_each_domain_s_cells_are_contrasted_with_both_banks_before_they_enter_their_own() -> None:
    method, batches = made(hard=()), make_batches(make_stage("ucda"))
    first = {loss.name: loss for losses in method.losses(batches, 0, 10) for loss in losses}
    assert first["source_in_domain"].value.item() == first["source_cross_domain"].value.item() == 0
    assert first["target_in_domain"].value.item() == 0 < first["target_cross_domain"].value.item()
    banks = {
        d: (b.pixels.clone(), b.labels.clone())
        for d, b in (("source", method.source_bank), ("target", method.target_bank))
    }
    assert all((y != IGNORE).any() for _, y in banks.values())
    later = make_batches(make_stage("ucda"), step=1)
    losses = method.losses(later, 1, 10)
    for domain, other in (("source", "target"), ("target", "source")):
        terms = {loss.name: loss.value for loss in next(losses)}
        out = method.student(later[domain].image, domain, later[domain].index)
        cells = F.normalize(method.projection(out.features[-1]), dim=1)
        y = downscale_label(later[domain].labels, (cells.shape[2], cells.shape[3])).flatten()
        for kind, bank in (("in_domain", domain), ("cross_domain", other)):
            pixels, of = banks[bank]
            if (domain, bank) == ("target", "source"):  # which the source's cells of this step have entered
                pixels, of = method.source_bank.pixels, method.source_bank.labels
                assert not torch.equal(pixels, banks[bank][0])
            value = memory_contrast(flatten(cells), y, pixels, of, temperature=0.5)
            torch.testing.assert_close(terms[f"{domain}_{kind}"], value)


def test_labels_are_expanded_where_there_are_none_to_hard_classes_on_which_neighbours_agree() -> None:
    method, batches = made(), make_batches(make_stage("ucda"), size=4)
    target = batches["target"]
    losses = method.losses(batches, 0, 10)
    next(losses)
    terms = {loss.name: loss.value for loss in next(losses)}
    out = method.student(target.image, "target", target.index)
    cells = F.normalize(method.projection(out.features[-1]), dim=1)
    bank = method.source_bank
    found = nearest_label(cells, bank.pixels, bank.labels, num_classes=CLASSES, neighbours=2, agreeing=2)
    side = 64 // found.shape[1]
    label, expanded = target.labels.clone(), 0
    for b, i, j in (label == IGNORE).nonzero().tolist():
        if int(found[b, i // side, j // side]) in (1, 2):
            label[b, i, j] = found[b, i // side, j // side]
            expanded += 1
    assert expanded > 0
    assert float(terms["expanded"]) == pytest.approx(expanded / label.numel())
    torch.testing.assert_close(terms["target_ce"], F.cross_entropy(out.logits, label, ignore_index=IGNORE))
    later = collect_frozen(
        make_state(replace(make_stage("ucda"), method=replace(method.config, expand_from=1))), batches
    )
    assert float(later["expanded"].value) == 0


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.hard \(1, 9\)"):
        made(hard=(1, 9))
    with pytest.raises(ValueError, match=r"method\.agreeing is 3"):
        made(agreeing=3)
