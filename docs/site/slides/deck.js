// Cuts a lesson into pages that fit a screen of 1280 x 720, then starts reveal.js.
//
// A cell with a slide tag begins a stack; the cells after it go down. The blocks of a stack (a paragraph, a formula, a
// picture, a piece of code) fill page after page. A block that is larger than a page is made smaller. What a lesson
// folds away (the answer of a question) stands on a page of its own, one step down.
"use strict";

const [WIDTH, HEIGHT] = [1184, 664];  // of a page, without its margins

const element = (tag, name, html = "") => Object.assign(document.createElement(tag), { className: name, innerHTML: html });

// A block: {node, starts: does it begin a page, heading: does it stay with what comes next}
function* blocksOf(stack) {
    for (const cell of stack.querySelectorAll(".jp-Cell")) {
        const text = cell.querySelector(".jp-RenderedMarkdown");
        if (text) {
            for (const node of [...text.children]) yield* textBlocks(node);
            continue;
        }
        const code = cell.querySelector(".jp-InputArea .highlight");
        if (code?.textContent.trim()) {
            const box = element("div", "input");
            box.append(code);
            yield { node: box };
        }
        for (const output of cell.querySelectorAll(".jp-OutputArea-output")) yield* outputBlocks(output);
    }
}

function* textBlocks(node) {
    if (node.tagName === "DETAILS") yield* folded(node);
    else if (/^[UO]L$/.test(node.tagName)) {  // item by item, so that a page may end between two
        for (const [place, item] of [...node.children].entries()) {
            const list = Object.assign(document.createElement(node.tagName), { start: (node.start ?? 1) + place });
            list.append(item);
            yield { node: list };
        }
    }
    else yield { node, heading: /^H[1-4]$/.test(node.tagName), starts: /^H[1-3]$/.test(node.tagName) };
}

function* outputBlocks(output) {
    const fold = output.querySelector("details");
    fold?.remove();
    const box = element("div", "output");
    box.append(...output.childNodes);
    yield { node: box };
    if (fold) yield* folded(fold);
}

function* folded(details) {
    const summary = details.querySelector("summary");
    const title = /^Show the answer/.test(summary.textContent) ? "Answer" : summary.textContent;
    summary.remove();
    yield { node: element("p", "answer", title), heading: true, starts: true };
    for (const node of [...details.childNodes]) {
        if (node.nodeType === Node.ELEMENT_NODE) yield* textBlocks(node);
        else if (node.textContent.trim()) yield { node: element("p", "", node.textContent) };
    }
}

function pagesOf(stack, ruler) {
    const pages = [], blocks = [...blocksOf(stack)];
    let title = "", page = null, waiting = [];  // headings that wait for their first block
    const next = () => {
        page = element("div", "page");
        pages.push(page);
        ruler.append(page);
    };
    const tooHigh = () => page.offsetHeight > HEIGHT + 28;
    blocks.forEach((block, place) => {
        const box = element("div", "block");
        box.append(block.node);
        if (block.starts) page = null;
        if (block.heading) {
            waiting.push(box);
            if (/^H[1-3]$/.test(block.node.tagName)) title = block.node.textContent.replace("¶", "");
            if (place < blocks.length - 1) return;
        }
        const group = block.heading ? waiting : [...waiting, box];
        if (!page) next();
        page.append(...group);
        if (tooHigh() && page.children.length > group.length) {  // onto a new page, with the title in small
            group.forEach(each => each.remove());
            next();
            if (title && !waiting.length) page.append(element("h4", "", title));
            page.append(...group);
        }
        shrink(box, page);
        waiting = [];
    });
    return pages;
}

// Make a block as small as its page needs.
function shrink(box, page) {
    if (box.querySelector("pre, table")) box.classList.add("wide");
    let wide = box.scrollWidth;
    if (wide > WIDTH * 1.3 && !box.querySelector("table")) {  // smaller would be too small: break the lines
        box.classList.replace("wide", "wrapped");
        wide = box.scrollWidth;
    }
    const others = page.offsetHeight - box.offsetHeight;
    const factor = Math.min(1, WIDTH / wide, (HEIGHT + 28 - others) / box.offsetHeight);
    if (factor < 1) box.style.zoom = Math.floor(factor * 100) / 100;
}

async function start() {
    await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
    const ruler = element("div", "reveal");
    ruler.id = "ruler";
    document.body.append(ruler);
    for (const stack of document.querySelectorAll(".slides > section")) {
        const pages = pagesOf(stack, ruler);
        stack.replaceChildren(...pages.map(page => {
            const section = document.createElement("section");
            section.append(page);
            return section;
        }));
        if (!pages.length) stack.remove();
    }
    ruler.remove();
    await Reveal.initialize({
        width: 1280, height: 720, margin: 0, center: false, hash: true, slideNumber: "h.v",
        transition: "none", backgroundTransition: "none", plugins: [RevealNotes],
    });
    document.body.dataset.deck = "ready";
}

window.MathJax = {
    tex: { inlineMath: [["$", "$"], ["\\(", "\\)"]], displayMath: [["$$", "$$"], ["\\[", "\\]"]], processEscapes: true },
    svg: { fontCache: "local" },
    options: { enableMenu: false },
    startup: { pageReady: () => MathJax.startup.defaultPageReady().then(start) },
};
