// Tabs: one data set at a time. Without scripts all panels are there, one below the other.
for (const list of document.querySelectorAll("[role=tablist]")) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const show = (chosen) => tabs.forEach((tab) => {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  });
  tabs.forEach((tab, i) => {
    tab.onclick = () => show(tab);
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      show(next);
      next.focus();
    };
  });
  show(tabs[0]);
}

// The source image is in the page once; each transferred picture borrows it.
for (const strip of document.querySelectorAll(".sheet .strip")) {
  const source = strip.querySelector("img.source");
  for (const compare of strip.querySelectorAll(".compare")) {
    const over = new Image();
    over.className = "over";
    over.alt = "";
    over.src = source.src;
    const range = compare.querySelector("input");
    compare.insertBefore(over, range);
    range.oninput = () => compare.style.setProperty("--cut", range.value + "%");
  }
}

// The section in view is marked in the navigation.
const links = [...document.querySelectorAll("nav a")];
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) links.forEach((link) => link.classList.toggle("here", link.hash === "#" + entry.target.id));
}), { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("section").forEach((section) => seen.observe(section));
