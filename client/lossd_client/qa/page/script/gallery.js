// The images as small pictures. Cards are made a screen at a time, as far as somebody scrolls.

import { byId, element, grouped } from "./dom.js";
import { thumbnailOf } from "./report.js";

const CARDS_AT_A_TIME = 60;
const MARKS = { confirmed: "✓ wrong", rejected: "✗ right", ambiguous: "? ambiguous" };

export class Gallery {
  constructor(decisions, choose) {
    this.decisions = decisions;
    this.choose = choose;
    this.box = byId("gallery");
    this.list = byId("cards");
    this.end = byId("cards-end");
    this.shown = [];
    this.cards = new Map();
    this.current = null;
    new IntersectionObserver((entries) => {
      if (entries.some(({ isIntersecting }) => isIntersecting)) this.grow();
    }, { root: this.box, rootMargin: "600px" }).observe(this.end);
    decisions.onChange(() => this.mark());
  }

  show(images, total) {
    this.shown = images;
    this.cards.clear();
    this.list.replaceChildren();
    byId("count").textContent = `${grouped(images.length)} of ${grouped(total)} images`;
    byId("none").hidden = images.length > 0;
    this.grow();
    if (this.current !== null) this.point(this.current);
  }

  // Makes sure that an image's card is there, and goes to it.
  point(image) {
    this.current = image;
    const place = this.shown.indexOf(image);
    while (place >= 0 && this.cards.size <= place) this.grow();
    for (const [other, card] of this.cards) {
      if (other === image) card.setAttribute("aria-current", "true");
      else card.removeAttribute("aria-current");
      card.tabIndex = other === image ? 0 : -1;
    }
    if (place < 0 && this.shown.length) this.cards.get(this.shown[0]).tabIndex = 0;
    if (this.cards.has(image)) this.reveal(this.cards.get(image));
  }

  // Scrolls the gallery, but not the page, as far as needed.
  reveal(card) {
    const { scrollTop, clientHeight } = this.box;
    const top = card.offsetTop;
    const bottom = top + card.offsetHeight;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (bottom > scrollTop + clientHeight) this.box.scrollTop = bottom - clientHeight;
  }

  grow() {
    const first = this.cards.size;
    const more = this.shown.slice(first, first + CARDS_AT_A_TIME);
    this.list.append(...more.map((image) => element("li", {}, this.made(image))));
    this.end.hidden = this.cards.size === this.shown.length;
    this.mark(more);
  }

  made(image) {
    const picture = element("img", { alt: "", decoding: "async", width: 160, height: 120 });
    thumbnailOf(image).then((address) => {
      if (address !== null) picture.src = address;
    });
    const card = element(
      "button",
      { type: "button", class: "card", tabindex: -1, click: () => this.choose(image) },
      picture,
      element("span", { class: "name" }, image.name),
      element(
        "span",
        { class: "told" },
        `${image.rank}. suspicion ${image.suspicion.toFixed(1)}`,
        element("br"),
        image.kind ?? "nothing disputed",
      ),
      element("span", { class: "mark" }),
    );
    this.cards.set(image, card);
    if (this.current === null && this.cards.size === 1) card.tabIndex = 0;
    return card;
  }

  mark(images = this.cards.keys()) {
    for (const image of images) {
      const card = this.cards.get(image);
      const { verdict, isSettled, open, decided } = this.decisions.review(image);
      const partly = decided && !isSettled ? `${open} open` : "";
      card.querySelector(".mark").textContent = [MARKS[verdict], partly].filter(Boolean).join(", ");
      card.dataset.verdict = verdict ?? "";
      card.classList.toggle("settled", isSettled);
    }
  }
}
