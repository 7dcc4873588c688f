"""An explorer: what theory and simulation say of a setting, in numbers, in a picture, with sliders and as a page."""

from simulate.explorer.page import write_explorer_page
from simulate.explorer.picture import plot_explored
from simulate.explorer.quantities import QUANTITIES, Explored, explore
from simulate.explorer.sliders import explorer

__all__ = ["QUANTITIES", "Explored", "explore", "explorer", "plot_explored", "write_explorer_page"]
