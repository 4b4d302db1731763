r"""
Figure 1: one function, two starts
==================================

Figure 1 of Yi (UAI 2022), on scikit-learn's digits in place of MNIST and for 30 epochs in place of 200. Linear–BatchNorm–ReLU–Linear–BatchNorm starts with rows
of norm 1, and again with the rows of both weights multiplied and divided in turn by :math:`a = 2^{13}`. Both starts compute
the same function; which optimizers train them alike?
"""

from matplotlib import pyplot as plt
from retract.psi import data, figure1

plt.style.use("tableau-colorblind10")

# %%
# ``retract.psi.figure1`` is what ``python -m retract`` runs: 100 hidden units, batches of 128,
# learning rate 0.1, × 0.1 after 40 % of the epochs, momentum 0.9 for SGD and PSI-SGDM. BatchNorm's eps is 1e-30: at the
# default of 1e-5 it would not be small against the variance behind a row of norm :math:`2^{-13}`, and the two starts would
# be two functions.

config = figure1.Config(epochs=30)
digits = data.digits()
print(figure1.invariance(digits, config))
print(f"relative change of the outputs by rescaling: {figure1.eps_leak(digits, config):.0e} in float64,")
print(f"and {figure1.eps_leak(digits, figure1.Config(eps=1e-5)):.1f} with an eps of 1e-5")

# %%
# SGD sees the gradient of a row fall as :math:`1/r` while the row grows as :math:`r`: it turns rows at a rate of
# :math:`\eta / r^2`, which here is :math:`2^{26}` times too small for half of them, and as much too large for the others,
# until their first step has made them long. PSI-SGD steps by :math:`-\eta\, r^2 \nabla_w L`, which grows as the row does.
# Multiplications by powers of two are exact in floating point, and so is the equality.

methods = ("SGD", "PSI-SGD", "PSI-SGDM")
outcomes = {method: figure1.compare(method, digits, config) for method in methods}

# %%
# What to look at: whether the dashed line lies on the solid one.

figure, panels = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained", sharey=True)
for panel, method in zip(panels, ("SGD", "PSI-SGDM"), strict=True):
    means = outcomes[method].epoch_means
    epochs = range(1, config.epochs + 1)
    panel.semilogy(epochs, means["balanced"], color="C0", linewidth=4, alpha=0.5, label="balanced")
    panel.semilogy(epochs, means["rescaled"], color="C1", linestyle="--", label="rescaled")
    panel.set(title=method, xlabel="epoch")
    panel.grid(alpha=0.3)
panels[0].set_ylabel("mean training loss")
panels[0].legend(title="start")
plt.show()

# %%
# Test accuracy in eval mode after the last epoch, and the largest difference of the mean losses. PSI's rows keep the norms they
# start with, so that a running variance may have to come down to the order of :math:`2^{-26}`. After :math:`t` steps it
# still holds :math:`0.9^t` of its initial value of 1: nothing after these 360 steps; shorter runs need ``psi.recalibrate``.

for method, outcome in outcomes.items():
    balanced, rescaled = outcome.accuracy.values()
    same = "bitwise equal" if outcome.bitwise_equal else f"apart by {outcome.largest_difference:.2g}"
    print(f"{method:9} {balanced:.1f} % balanced, {rescaled:.1f} % rescaled; losses {same}")

assert outcomes["PSI-SGD"].bitwise_equal
assert outcomes["PSI-SGDM"].bitwise_equal
assert all(len(set(outcomes[method].accuracy.values())) == 1 for method in ("PSI-SGD", "PSI-SGDM"))
assert outcomes["SGD"].accuracy["balanced"] > outcomes["SGD"].accuracy["rescaled"] + 10
assert len(outcomes["SGD"].losses["balanced"]) == 360
assert figure1.eps_leak(digits, config) < 1e-15
