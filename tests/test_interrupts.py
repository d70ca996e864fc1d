"""What Ctrl-C does not break in two."""

import signal
import threading

import pytest

from berthead.train.interrupts import defer_sigint


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C as a terminal has it: what runs in the background may have been started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_comes_when_it_is_over():
    done = []

    def work():
        with defer_sigint():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_is_not_hidden():
    with pytest.raises(ValueError, match="broken"), defer_sigint():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_have_no_ctrl_c():
    done = []

    def work():
        with defer_sigint():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]
