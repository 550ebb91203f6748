// Runs before anything is painted, so that a dark page never flashes white.
const chosen = localStorage.getItem("ryzc.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
