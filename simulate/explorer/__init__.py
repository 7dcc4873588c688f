"""Explorer: theory and simulation of one setting as numbers, figure, notebook sliders and HTML page."""

from simulate.explorer.page import write_explorer_page
from simulate.explorer.picture import plot_exploration
from simulate.explorer.quantities import QUANTITIES, Exploration, explore
from simulate.explorer.sliders import explorer

__all__ = ["QUANTITIES", "Exploration", "explore", "explorer", "plot_exploration", "write_explorer_page"]
