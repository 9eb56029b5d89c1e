"""worker.broker.keys: the namespace in every name."""

import pytest

from worker.broker.keys import NO_NAMESPACE, Namespace, NamespaceError, delivery_tag, queue_of


def test_a_namespace_is_the_hash_tag_of_every_key() -> None:
    assert Namespace("staging").key("sqe.evaluate") == "{staging}:sqe.evaluate"
    assert NO_NAMESPACE.key("sqe.evaluate") == "sqe.evaluate"


@pytest.mark.parametrize("namespace", [NO_NAMESPACE, Namespace("a.b_c-1")])
def test_a_tag_leads_back_to_its_queue(namespace: Namespace) -> None:
    tag = delivery_tag(namespace.key("sqe.evaluate"), "1")
    assert namespace.name_of(queue_of(tag)) == "sqe.evaluate"


@pytest.mark.parametrize("name", ["a b", "a/b", "{a}", "a:b", "é", "a\n", "a" * 65])
def test_a_name_that_would_be_misread_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        NamespaceError, match=r"^SQE_NAMESPACE .*: use at most 64 letters"
    ) as caught:
        Namespace(name)
    assert str(caught.value).isprintable()
