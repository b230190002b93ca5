"""The stacked step against the exercise written the plain way: the same losses and the same weights."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch

import polytask as pt
from polytask.config import read
from polytask.data.batch import Feed
from polytask.replicas import Stack

PLAIN = Path(__file__).parents[1] / "bench" / "exercise.py"


def plain_net(model: pt.MultiTask, users: int, items: int) -> torch.nn.Module:
    """The plain network with the parameters of ``model``."""
    spec = importlib.util.spec_from_file_location("exercise", PLAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Net(users, items)
    own = dict(model.named_parameters())
    tables = {"user": "tables.0.weight", "of_user": "heads.0.bias.weight"}
    with torch.no_grad():
        for name, source in tables.items():
            getattr(net, name).weight.copy_(own[source][:users])
            getattr(net, name.replace("user", "item")).weight.copy_(own[source][users:])
        for name, parameter in net.network.named_parameters():
            parameter.copy_(own[f"heads.1.network.{name}"])
    return net


def test_an_epoch_follows_the_plain_exercise_step_by_step() -> None:
    config = read("cs330")[0].with_variant("handout")
    data = pt.synthetic(users=100, items=150, rows=6000)
    data = replace(data, schema=config.schema_for(data))
    part = pt.split(data, "exercise", valid=0.0, test=0.05).train
    models = [pt.MultiTask(part, config.design()) for _ in range(2)]
    nets = [plain_net(m, 101, 151) for m in models]
    adams = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in nets]
    weights = torch.tensor([[0.99, 0.01], [0.5, 0.5]])
    stack = Stack(models, [1e-3, 1e-3])
    for batch in Feed([part, part], [0, 1], 64, "uniform_all").epoch(1):
        losses = stack.step(batch, weights)
        for r, (net, adam) in enumerate(zip(nets, adams, strict=True)):
            users, items = batch.ids[r].unbind(dim=1)
            score, predicted = net(users, items)
            other, _ = net(users, batch.negative_ids[r, :, 0, 0])
            ranking = (1 - torch.sigmoid(score - other)).mean()
            rating = ((predicted - batch.labels[r, :, 1]) ** 2).mean()
            torch.testing.assert_close(losses[r], torch.stack([ranking, rating]).detach(), rtol=1e-4, atol=1e-5)
            adam.zero_grad()
            (weights[r, 0] * ranking + weights[r, 1] * rating).backward()
            adam.step()
    for model, net in zip(models, nets, strict=True):
        table, head = model.tables[0].weight, model.heads[1].network
        torch.testing.assert_close(table[:101], net.user.weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(head[0].weight, net.network[0].weight, rtol=1e-3, atol=1e-5)
