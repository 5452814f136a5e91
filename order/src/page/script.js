// ---- what there is ---------------------------------------------------------------------------------------------------

/** Where the services are: an empty address is where this page came from. */
const SERVICES = JSON.parse(document.getElementById('services').textContent);
const KINDS = ['', '.compensation', '.success', '.dlt'];
const TOPICS = ['payment', 'stock'].flatMap(side => KINDS.map(kind => topicOf(side, kind)));
/** A status as one sees it: a sign besides the colour. */
const SIGNS = { READY: '○', IN_PROGRESS: '…', COMPLETED: '✓', FAILED: '✕', COMPENSATING: '↩', COMPENSATED: '↩' };
const WHY_REFUSED = {
  backlog: 'more wait than can be settled in time', outage: 'a part of the system has been away for long', queue: 'too many wait to be stored',
};
const LANES = { IN_PROGRESS: 'in progress', COMPLETED: 'completed', FAILED: 'failed' };

/** Milliseconds: between two looks; at most, while a service is away; until a call is given up. */
const EVERY = 1000, LONGEST = 15000, PATIENCE = 8000;
/** Dead letters change seldom: without a sign of a change they are looked at every so many milliseconds. */
const LETTERS_EVERY = 5000;
/** After so many replays that failed, the services require `force`. */
const FAILED_OFTEN = 5;
/** Orders in the stream, and rows of the list. */
const STREAM = 60, ROWS = 15;
/** Orders of one click that are on their way at once; a browser has six connections to a host, polling needs one. */
const AT_ONCE = 4;

function topicOf(side, kind) {
  const asks = kind === '' || kind === '.compensation';
  return { name: side + kind, kind: kind.slice(1) || 'request', from: asks ? 'order' : side, to: asks ? side : 'order' };
}

// ---- elements and words ----------------------------------------------------------------------------------------------

const $ = id => document.getElementById(id);

/** An element with attributes and children. Strings become text nodes, never HTML. */
function el(name, attributes, ...children) { return filled(document.createElement(name), attributes, children); }
function drawn(name, attributes, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}
function filled(element, attributes = {}, children = []) {
  for (const [name, value] of Object.entries(attributes)) put(element, name, value);
  element.append(...children);
  return element;
}

/** Sets an attribute if it is another; null removes it, and false, which for ARIA is a value like others. */
function put(element, name, value) {
  if (value === null || (value === false && !name.startsWith('aria-'))) return element.removeAttribute(name);
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}
/** Sets an element's text if it is another. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
/** Makes `wanted` the children of `parent`. What is in place is not touched: it may have the focus. */
function arrange(parent, wanted) {
  wanted.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}

const words = status => status.toLowerCase().replaceAll('_', ' ');
const count = number => number === null || number === undefined ? '–' : number.toLocaleString('en');
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? '' : 's'}`;
const clock = time => new Date(time).toLocaleTimeString('en-GB');
const seconds = number => number >= 100 ? `${Math.round(number)} s` : `${number.toFixed(1)} s`;
const short = id => `…${id.slice(-8)}`;
const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

/** Says a result, also to who doesn't see it. */
function say(output, text, kind = '') {
  output.dataset.kind = kind;
  write(output, text);
}

// ---- calls -----------------------------------------------------------------------------------------------------------

/** A call that did not succeed: the answer's status (0: there was none) and what it says. */
class Failure extends Error {
  constructor(status, detail, fields = []) {
    super(detail);
    Object.assign(this, { status, fields });
  }
}

/** The JSON that a service answers. `options.body` is sent as JSON; `options.signed`: with the name and token of who does it. */
async function call(service, method, path, options = {}) {
  const headers = { ...options.headers, ...(options.signed ? signature() : {}) };
  if (options.body) headers['Content-Type'] = 'application/json';
  const request = { method, headers, body: options.body && JSON.stringify(options.body), signal: AbortSignal.timeout(PATIENCE), cache: 'no-store' };
  const [answer, json] = await fetch(SERVICES[service] + path, request)
    .then(async answer => [answer, await answer.json()])
    .catch(() => { throw new Failure(0, `${service} can’t be reached at ${SERVICES[service] || location.origin}`); });
  if (!answer.ok) throw new Failure(answer.status, explained(service, answer.status, json), json.errors);
  return json;
}

function explained(service, status, problem) {
  const detail = problem.detail ?? problem.title ?? `${service} answered ${status}`;
  return status === 401 ? `${service} did not let you: ${detail}. Enter the token under “You”.` : detail;
}

function signature() {
  const [actor, token] = [$('actor').value.trim(), $('token').value.trim()];
  return { ...(actor && { 'X-Actor': utf8(actor) }), ...(token && { Authorization: `Bearer ${utf8(token)}` }) };
}
/** A header takes bytes: those of UTF-8, one character each. */
const utf8 = text => String.fromCharCode(...new TextEncoder().encode(text));

// ---- looking again and again -----------------------------------------------------------------------------------------

let paused = false;
const bell = new EventTarget();
/** Ends all pauses: whoever polls looks again now. */
const ring = () => bell.dispatchEvent(new Event('ring'));
const rung = () => new Promise(done => bell.addEventListener('ring', done, { once: true }));
const sleep = time => new Promise(done => {
  const wake = () => { clearTimeout(timer); bell.removeEventListener('ring', wake); done(); };
  const timer = setTimeout(wake, time);
  bell.addEventListener('ring', wake);
});
const awake = async () => { while (document.hidden || paused) await rung(); };

/** Does `turn` every second; after a failure later and later, and calls `failed` with how long it will wait. */
async function poll(turn, failed) {
  for (let pause = EVERY; ; await sleep(pause)) {
    await awake();
    try {
      await turn();
      pause = EVERY;
    } catch (failure) {
      if (!(failure instanceof Failure)) reportError(failure);
      pause = Math.min(2 * pause, LONGEST);
      failed(failure, pause);
    }
  }
}

// ---- the picture: services -------------------------------------------------------------------------------------------

const cards = Object.fromEntries(Object.keys(SERVICES).map(name => [name, serviceCard(name)]));
const versions = {};

function serviceCard(name) {
  const [state, facts] = [el('p', { class: 'state' }), el('dl', { class: 'facts' })];
  const card = el('article', { class: 'service', id: `service-${name}`, 'aria-labelledby': `name-${name}`, 'data-state': 'unknown' },
    el('h3', { id: `name-${name}` }, name), state, facts);
  write(state, '◌ not known yet');
  $('system').append(card);
  return { card, state, facts };
}

function showService(name, seen) {
  const state = seen.ready ? ['ready', '● ready'] : ['unready', `◐ not ready: ${seen.reasons.join(', ')}`];
  showState(name, ...state);
  const outbox = seen.outbox?.waiting ?? null;
  const age = outbox ? `, ${seconds(seen.outbox.oldestSeconds ?? 0)}` : '';
  arrange(cards[name].facts, [
    fact('relay', seen.leader === null ? '–' : seen.leader ? `leads, epoch ${seen.epoch ?? '–'}` : 'stands by'),
    fact('outbox', `${count(outbox)}${age}`, outbox > 0),
    fact('dead letters', count(seen.deadLetters), seen.deadLetters > 0),
    ...(seen.setAside?.records ? [fact('set aside', count(seen.setAside.records), true)] : []),
    ...(seen.waiting?.length ? [fact('waiting', seen.waiting.map(waiting => waiting.what).join(', '), true)] : []),
    ...(seen.admission ? [fact('admission', seen.admission.open ? 'open' : 'refusing', !seen.admission.open)] : []),
    ...(seen.orders ? Object.keys(LANES).map(status => fact(LANES[status], count(seen.orders[status]), false, 'orders')) : []),
  ]);
  versions[name] = `${name} ${seen.version}`;
  write($('versions'), Object.values(versions).join(', ') + '.');
}

function fact(name, value, notable = false, kind = null) {
  return el('div', { class: kind }, el('dt', {}, name), el('dd', { class: notable ? 'some' : null }, value));
}

function showState(name, state, text) {
  put(cards[name].card, 'data-state', state);
  write(cards[name].state, text);
}

function showAway(name, failure, pause) {
  const again = `looked at again in ${Math.round(pause / 1000)} s`;
  if (failure.status === 404) showState(name, 'unknown', '◌ not known');
  else showState(name, 'away', `✕ ${failure.status ? failure.message : 'away, or does not let this page ask (CORS_ORIGINS)'}; ${again}`);
  for (const edge of edgesTo(name)) put(edge.group, 'data-stale', true);
  if (name === 'order') forgetAdmission();
}

// ---- the picture: topics ---------------------------------------------------------------------------------------------

const ROW = 46, TOP = 18, GAP = 20, HEIGHT = 414;
const edges = Object.fromEntries(TOPICS.map(topic => [topic.name, edgeOf(topic)]));
const rails = ['order', 'payment', 'stock'].map(railOf);

function edgeOf(topic) {
  const parts = {
    backlog: drawn('rect', { class: 'backlog', height: 8, rx: 4, width: 0 }),
    line: drawn('line', { class: 'line' }),
    tip: drawn('polyline', { class: 'tip' }),
    name: drawn('text', { class: 'name' }, topic.name),
    rate: drawn('text', { class: 'muted', 'text-anchor': 'end' }),
    end: drawn('text', {}, drawn('tspan', { class: 'muted' }, 'end '), drawn('tspan', {}, '–')),
    lag: drawn('text', { class: 'muted', 'text-anchor': 'end' }, 'lag –'),
  };
  const group = drawn('g', { class: 'edge', 'data-kind': topic.kind }, ...Object.values(parts));
  $('edges').append(group);
  return { topic, group, ...parts, ...tableRow(topic), known: { end: null, lag: null }, left: 0, right: 0, y: 0 };
}

function tableRow(topic) {
  const cells = Array.from({ length: 3 }, () => el('td', { class: 'number' }, '–'));
  $('topics').append(el('tr', {}, el('th', { scope: 'row' }, topic.name), el('td', {}, topic.from), el('td', {}, topic.to), ...cells));
  return { cells };
}

/** On a narrow screen the services stand above; these are their ends of the edges. */
function railOf(name) {
  const [bar, text] = [drawn('rect', { class: 'rail', rx: 8, width: 24 }), drawn('text', { 'text-anchor': 'middle' }, name)];
  const group = drawn('g', {}, bar, text);
  $('edges').prepend(group);
  return { name, group, bar, text };
}

function placeEdges() {
  const width = $('edges').clientWidth;
  if (!width) return;
  put($('edges'), 'viewBox', `0 0 ${width} ${HEIGHT}`);
  const narrow = $('system').clientWidth < 640;
  const inset = narrow ? 32 : 8;
  Object.values(edges).forEach((edge, at) => placeEdge(edge, at, inset, width - inset));
  rails.forEach(rail => placeRail(rail, narrow, width));
}

function placeEdge(edge, at, left, right) {
  const y = TOP + at * ROW + (at > 3 ? GAP : 0) + 22;
  Object.assign(edge, { left, right, y });
  const onwards = edge.topic.from === 'order';
  const [tip, back] = onwards ? [right - 1, right - 7] : [left + 1, left + 7];
  moveTo(edge.line, { x1: left, x2: right, y1: y, y2: y });
  put(edge.tip, 'points', `${back},${y - 5} ${tip},${y} ${back},${y + 5}`);
  moveTo(edge.name, { x: left + 8, y: y - 8 });
  const roomy = isWide(edge);
  moveTo(edge.lag, { x: right - 8, y: roomy ? y - 8 : y + 15 });
  moveTo(edge.end, { x: roomy ? right - 140 : left + 8, y: roomy ? y - 8 : y + 15, 'text-anchor': roomy ? 'end' : 'start' });
  moveTo(edge.rate, { x: right - 232, y: y - 8, visibility: roomy ? 'visible' : 'hidden' });
  showBacklog(edge);
}
/** Whether the numbers have room beside the topic's name. */
const isWide = edge => edge.right - edge.left > 420;
function moveTo(shape, place) { Object.entries(place).forEach(([name, value]) => put(shape, name, value)); }

function placeRail(rail, narrow, width) {
  const [first, last] = { order: [0, 7], payment: [0, 3], stock: [4, 7] }[rail.name];
  const top = TOP + first * ROW + (first > 3 ? GAP : 0) - 12, bottom = TOP + last * ROW + (last > 3 ? GAP : 0) + 32;
  const x = rail.name === 'order' ? 4 : width - 28, middle = (top + bottom) / 2;
  moveTo(rail.bar, { x, y: top, height: bottom - top });
  moveTo(rail.text, { x: x + 12, y: middle + 4, transform: `rotate(-90 ${x + 12} ${middle})` });
  put(rail.group, 'visibility', narrow ? 'visible' : 'hidden');
}

/** The reader's end of the edge is thick as far as it lags: a tenth of the way at 1, half of it at 100,000. */
function showBacklog(edge) {
  const lag = edge.known.lag ?? 0;
  const width = lag > 0 ? (edge.right - edge.left) * Math.min(.6, .02 + .08 * Math.log10(10 * lag)) : 0;
  const x = edge.topic.from === 'order' ? edge.right - width : edge.left;
  moveTo(edge.backlog, { x, y: edge.y - 4, width });
}

/** What a service says of the topics that it reads; nothing while it does not reach Kafka itself. */
function showTopics(service, consumers) {
  const partitions = Object.groupBy(consumers, partition => partition.topic);
  for (const edge of edgesTo(service)) {
    if (partitions[edge.topic.name]) showTopic(edge, partitions[edge.topic.name]);
    else put(edge.group, 'data-stale', true);
  }
}
const edgesTo = service => Object.values(edges).filter(edge => edge.topic.to === service);

function showTopic(edge, partitions) {
  const sum = field => partitions.reduce((all, one) => all === null || one[field] === null ? null : all + one[field], 0);
  const now = { end: sum('end'), lag: sum('lag'), behind: Math.max(...partitions.map(one => one.lagSeconds ?? 0)) };
  const more = edge.known.end === null ? 0 : (now.end ?? 0) - edge.known.end;
  edge.known = now;
  put(edge.group, 'data-stale', false);
  write(edge.end.lastChild, count(now.end));
  write(edge.rate, more > 0 ? `+${count(more)}` : '');
  write(edge.lag, now.lag > 0 ? `lag ${count(now.lag)}${isWide(edge) ? ` · ${seconds(now.behind)}` : ''}` : `lag ${count(now.lag)}`);
  put(edge.lag, 'class', now.lag > 0 ? 'lagging' : 'muted');
  [count(now.end), count(now.lag), now.lag > 0 ? seconds(now.behind) : '–'].forEach((text, at) => write(edge.cells[at], text));
  showBacklog(edge);
  if (more > 0 && !still()) fly(edge, Math.min(more, 5));
}

/** Some dots from the writer's end to the reader's. */
function fly(edge, dots) {
  const [from, to] = edge.topic.from === 'order' ? [edge.left, edge.right] : [edge.right, edge.left];
  for (let at = 0; at < dots; at++) {
    const dot = drawn('circle', { class: 'dot', r: 3.5, cx: from, cy: edge.y, opacity: 0 });
    edge.group.append(dot);
    const way = [{ opacity: 0 }, { opacity: 1, offset: .1 }, { opacity: 1, offset: .9 }, { transform: `translateX(${to - from}px)`, opacity: 0 }];
    dot.animate(way, { duration: 900, delay: at * 140, easing: 'ease-in-out' }).finished.finally(() => dot.remove());
  }
}

// ---- the stream of orders --------------------------------------------------------------------------------------------

const lanes = Object.fromEntries(Object.entries(LANES).map(([status, title]) => [status, laneOf(title)]));
const tiles = new Map();

function laneOf(title) {
  const [number, note] = [el('b', { class: 'number' }, '–'), el('span', { class: 'quiet' })];
  const box = el('div', { class: 'tiles', 'aria-hidden': 'true' });
  $('lanes').append(el('div', { class: 'lane' }, el('p', {}, el('span', {}, `${title} `, note), number), box));
  return { number, note, box };
}

/** Whether new orders are accepted, and why not. */
function showAdmission({ open, reason, inFlight, limit, waitSeconds, limitSeconds, refused }) {
  const load = `${count(inFlight)} of at most ${count(limit)} are in flight, a new one takes ${seconds(waitSeconds)} of ${seconds(limitSeconds)}`;
  const state = open ? `New orders are accepted: ${load}.` : `New orders are refused, ${WHY_REFUSED[reason]}: ${load}.`;
  put($('admission'), 'data-open', String(open));
  write($('admission'), `${state} Refused since the start: ${count(refused)}.`);
}

function forgetAdmission() {
  put($('admission'), 'data-open', null);
  write($('admission'), 'Whether new orders are accepted is not known.');
}

/** Counts of the latest 10,000 orders, as the order service has them. */
function showCounts(counts) {
  for (const status of Object.keys(LANES)) write(lanes[status].number, count(counts?.[status]));
}

/** What a tile shows: an order that has failed may still be given back to. */
const tileStatus = order => order.orderStatus === 'FAILED' && !order.settled ? 'COMPENSATING' : order.orderStatus;

function showStream(orders) {
  const before = new Map([...tiles].map(([id, tile]) => [id, tile.getBoundingClientRect()]));
  const wanted = new Set(orders.map(order => order.orderId));
  for (const [id, tile] of tiles) if (!wanted.has(id)) { tile.remove(); tiles.delete(id); }
  for (const status of Object.keys(LANES)) {
    arrange(lanes[status].box, orders.filter(order => order.orderStatus === status).map(tileOf));
  }
  const unsettled = orders.filter(order => tileStatus(order) === 'COMPENSATING').length;
  write(lanes.FAILED.note, unsettled ? `(${count(unsettled)} compensating)` : '');
  if (!still()) glide(before);
}

function tileOf(order) {
  const tile = tiles.get(order.orderId) ?? el('span', { class: 'tile' });
  tiles.set(order.orderId, tile);
  put(tile, 'data-status', tileStatus(order));
  write(tile, SIGNS[tileStatus(order)]);
  return tile;
}

/** Lets each tile move from where it was to where it is; new ones appear. */
function glide(before) {
  for (const [id, tile] of tiles) {
    const [was, is] = [before.get(id), tile.getBoundingClientRect()];
    const how = was ? { transform: `translate(${was.x - is.x}px, ${was.y - is.y}px)` } : { opacity: 0, transform: 'scale(.4)' };
    if (!was || was.x !== is.x || was.y !== is.y) tile.animate([how, {}], { duration: 450, easing: 'ease-in-out' });
  }
}

// ---- the last orders -------------------------------------------------------------------------------------------------

/** Every order that was seen and is still shown or followed, by id. */
const orders = new Map();
const rows = new Map();
let shown = [], opened = null;

async function lookAtOrders() {
  const page = await call('order', 'GET', `/orders?limit=${followed.size ? 200 : STREAM}`);
  page.orders.forEach(order => orders.set(order.orderId, order));
  write($('orders-away'), '');
  showStream(page.orders.slice(0, STREAM));
  const status = $('status').value;
  const listed = status ? (await call('order', 'GET', `/orders?limit=${ROWS}&status=${status}`)).orders : page.orders.slice(0, ROWS);
  listed.forEach(order => orders.set(order.orderId, order));
  await lookAtOthers(new Set(page.orders.map(order => order.orderId)));
  showOrders(listed.map(order => order.orderId));
  showOutcome();
  await loadTimeline();
  forgetOrders();
}

/** Orders that have left the list but are awaited here, a few in each turn. */
async function lookAtOthers(seen) {
  const awaited = [opened, ...followed].filter(id => id && !seen.has(id) && !orders.get(id)?.settled);
  for (const id of awaited.slice(0, 3)) orders.set(id, await call('order', 'GET', `/orders/${id}`));
}

function forgetOrders() {
  for (const id of orders.keys()) if (!shown.includes(id) && id !== opened && !followed.has(id) && !tiles.has(id)) orders.delete(id);
  for (const id of rows.keys()) if (!shown.includes(id)) rows.delete(id);
}

/** Shows these orders; while somebody is in the list, only what has become of those that are there. */
function showOrders(latest) {
  const list = $('orders');
  const wanted = opened && !latest.includes(opened) ? [...latest, opened] : latest;
  const held = shown.length > 0 && list.matches(':focus-within, :hover') && wanted.join() !== shown.join();
  $('newer').hidden = !held;
  if (!held) shown = wanted;
  arrange(list, shown.map(id => showRow(orders.get(id))));
  $('no-orders').hidden = shown.length > 0;
  write($('no-orders'), 'There are none.');
}

function showRow(order) {
  const row = rows.get(order.orderId) ?? newRow(order);
  rows.set(order.orderId, row);
  const news = JSON.stringify(order);
  if (row.news !== news) {
    row.news = news;
    put(row.button, 'data-status', order.orderStatus);
    row.status.replaceChildren(chip(order.orderStatus), ...(order.reason ? [el('span', { class: 'quiet' }, ` ${words(order.reason.code)}`)] : []));
    row.sides.replaceChildren(chip(order.paymentStatus, 'payment '), chip(order.stockStatus, 'stock '));
  }
  put(row.button, 'aria-expanded', order.orderId === opened);
  row.timeline.hidden = order.orderId !== opened;
  return row.item;
}

function chip(status, of = '') {
  const name = of ? [el('b', {}, of)] : [];
  return el('span', { class: 'chip', 'data-status': status }, el('span', { 'aria-hidden': 'true' }, SIGNS[status] ?? '?'), ...name, words(status));
}

function newRow(order) {
  const timeline = el('div', { class: 'timeline', id: `timeline-${order.orderId}` });
  const [status, sides] = [el('span', { class: 'status' }), el('span', { class: 'sides' })];
  const button = el('button', { type: 'button', class: 'row', 'aria-controls': timeline.id },
    el('span', { class: 'quiet number time' }, clock(order.createdAt)),
    el('span', { class: 'what' }, `${order.userName ?? 'unknown'}: ${count(order.quantity)} × ${order.itemName ?? 'unknown'}, ${count(order.price)}`),
    status, sides, el('span', { class: 'mark', 'aria-hidden': 'true' }, '›'));
  button.addEventListener('click', () => openOrder(order.orderId === opened ? null : order.orderId));
  return { item: el('li', { 'data-order': order.orderId }, button, timeline), button, status, sides, timeline };
}

function openOrder(id) {
  opened = id;
  rows.forEach((row, of) => {
    put(row.button, 'aria-expanded', of === id);
    row.timeline.hidden = of !== id;
  });
  const row = rows.get(id);
  if (row && !row.rendered) row.timeline.replaceChildren(el('p', { class: 'quiet' }, id));
  ring();
}

/** The open order's timeline, until it is complete. */
async function loadTimeline() {
  const row = rows.get(opened);
  if (!row || row.complete) return;
  try {
    const timeline = await call('order', 'GET', `/orders/${opened}/timeline`);
    renderTimeline(row, timeline);
    row.complete = timeline.settled;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    row.timeline.replaceChildren(el('p', { class: 'quiet' }, `${opened}: its timeline is not known (${failure.message})`));
    row.complete = failure.status === 404;
  }
}

function renderTimeline(row, timeline) {
  const rendered = JSON.stringify(timeline);
  if (row.rendered === rendered) return;
  row.rendered = rendered;
  const first = timeline.steps[0]?.at;
  row.timeline.replaceChildren(
    el('p', { class: 'quiet' }, 'order ', el('span', { class: 'code' }, timeline.orderId), ', trace ', el('span', { class: 'code' }, timeline.traceId ?? '–')),
    el('ol', { class: 'steps' }, ...timeline.steps.map(step => stepOf(step, first))));
}

function stepOf(step, first) {
  return el('li', { 'data-step': step.step },
    el('time', { datetime: step.at, title: step.at }, step.at === first ? clock(first) : after(first, step.at)),
    el('span', {}, words(step.step), el('span', { class: 'quiet' }, ` · ${step.service}`)),
    el('span', { class: 'quiet' }, details(step)));
}

/** Times have six digits of a second, more than a date keeps. */
function after(first, at) {
  const micros = time => BigInt(Date.parse(time.slice(0, 19) + 'Z')) * 1000n + BigInt((time.slice(20, -1) + '000000').slice(0, 6));
  const passed = Math.max(0, Number(micros(at) - micros(first)) / 1000);
  return passed < 10000 ? `+${passed.toFixed(1)} ms` : `+${(passed / 1000).toFixed(1)} s`;
}

function details(step) {
  const place = step.topic && `${step.topic}-${step.partition ?? '?'}@${step.offset ?? '?'}`;
  const attempt = step.attempt > 1 ? `attempt ${step.attempt}` : null;
  return [step.type, place, attempt, step.reason && words(step.reason.code), step.messageId && short(step.messageId)].filter(Boolean).join(' · ');
}

// ---- placing orders --------------------------------------------------------------------------------------------------

/** Orders of the last click that are not settled yet, and how many it was of each outcome. */
const followed = new Set();
let outcome = null;

async function placeOrders(form) {
  const body = { userName: form.userName.value, itemName: form.itemName.value, price: whole(form.price), quantity: whole(form.quantity) };
  const wanted = Math.max(1, Math.min(200, whole($('place-count')) ?? 1));
  followed.clear();
  outcome = { placed: [], wanted };
  let left = wanted;
  const worker = async () => { while (left-- > 0) await placeOne(body); };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, wanted) }, worker)).finally(() => { left = 0; });
  if (wanted === 1) openOrder(outcome.placed[0]);
  showOutcome();
}

/** An error or a lost answer leaves the outcome open: asked again with the same key, the order is placed once. */
async function placeOne(body) {
  const headers = { 'Idempotency-Key': newKey() };
  for (let attempt = 1; ; attempt++) {
    try {
      const order = await call('order', 'POST', '/orders', { body, headers });
      orders.set(order.orderId, order);
      followed.add(order.orderId);
      outcome.placed.push(order.orderId);
      return;
    } catch (failure) {
      if (attempt === 4 || (failure.status > 0 && failure.status < 500)) throw failure;
      await new Promise(done => setTimeout(done, attempt * 500));
    }
  }
}
const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');

/** Says what became of the last click: once when all were taken, once when all are settled. */
function showOutcome() {
  if (!outcome || outcome.placed.length < outcome.wanted) return;
  for (const id of followed) if (orders.get(id)?.settled) settle(id);
  const { placed, wanted, ends = {} } = outcome;
  const done = followed.size === 0;
  const kind = done ? (ends.FAILED ? 'bad' : 'ok') : '';
  if (wanted === 1) say($('place-said'), `Order ${short(placed[0])}: ${done ? words(Object.keys(ends)[0]) + reasonOf(placed[0]) : 'placed'}`, kind);
  else say($('place-said'), `${plural(wanted, 'order')} placed${done ? ': ' + Object.entries(ends).map(([end, number]) => `${number} ${words(end)}`).join(', ') : ''}`, kind);
  if (done) outcome = null;
}

function settle(id) {
  const end = orders.get(id).orderStatus;
  outcome.ends = { ...outcome.ends, [end]: (outcome.ends?.[end] ?? 0) + 1 };
  followed.delete(id);
}
const reasonOf = id => orders.get(id)?.reason ? `, ${words(orders.get(id).reason.code)}` : '';

// ---- forms -----------------------------------------------------------------------------------------------------------

/** A field's whole number; what is none is sent as null, and the service says what it takes. */
const whole = input => input.value.trim() === '' || Number.isNaN(Number(input.value)) ? null : Number(input.value);

/** Runs what a form is there for: buttons off meanwhile, the failure said, and each bad field marked. */
async function submit(form, work) {
  const [output, buttons] = [form.querySelector('output'), [...form.querySelectorAll('button')]];
  const focused = document.activeElement;
  clearFields(form);
  buttons.forEach(button => { button.disabled = true; });
  try {
    await work();
  } catch (failure) {
    if (!(failure instanceof Failure)) reportError(failure);
    const marked = markFields(form, failure.fields ?? []);
    say(output, marked ? 'Nothing was changed: look at what is marked.' : failure.message, 'bad');
  } finally {
    buttons.forEach(button => { button.disabled = false; });
    if (document.activeElement === document.body) focused?.focus();
  }
}

function clearFields(form) {
  form.querySelectorAll('.wrong').forEach(note => note.remove());
  form.querySelectorAll('[aria-invalid]').forEach(input => {
    input.removeAttribute('aria-invalid');
    input.removeAttribute('aria-describedby');
  });
}

/** Whether all of these bad fields are in the form; then each has its note. */
function markFields(form, fields) {
  for (const { field, detail } of fields) {
    const input = form.elements[field];
    if (!input) return false;
    const note = el('p', { class: 'wrong', id: `wrong-${input.id}` }, detail);
    put(input, 'aria-invalid', true);
    put(input, 'aria-describedby', note.id);
    input.after(note);
  }
  form.querySelector('[aria-invalid]')?.focus();
  return fields.length > 0;
}

/** A form that sets and shows one number: an account's balance, an item's quantity. */
function numberForm(id, service, path, name, field) {
  const form = $(id), output = $(`${id}-said`);
  const address = () => `${path}/${encodeURIComponent(form[name].value.trim())}`;
  const set = number => submit(form, async () => {
    const now = await call(service, 'PUT', address(), { body: { [field]: number }, signed: true });
    say(output, `${now[name]}: ${field} is now ${count(now[field])}`, 'ok');
    ring();
  });
  const look = () => submit(form, async () => {
    const now = await call(service, 'GET', address());
    form[field].value = now[field];
    say(output, `${now[name]}: ${field} is ${count(now[field])}`);
  });
  form.addEventListener('submit', event => { event.preventDefault(); set(whole(form[field])); });
  form.querySelector('[data-do=empty]').addEventListener('click', () => set(0));
  form.querySelector('[data-do=look]').addEventListener('click', look);
}

// ---- dead letters ----------------------------------------------------------------------------------------------------

/** Of each service: its letters, how many it said there are, when it was asked. */
const parked = Object.fromEntries(Object.keys(SERVICES).map(name => [name, { letters: [], said: null, asked: 0, known: false }]));
const letters = new Map();

async function lookAtLetters(service, said) {
  const mine = parked[service];
  if (mine.said === said && Date.now() - mine.asked < LETTERS_EVERY) return;
  const state = $('letters-state').value;
  const page = await call(service, 'GET', `/dead-letters?state=${state}&limit=20`).catch(notKnown);
  if (state !== $('letters-state').value) return;
  Object.assign(mine, { letters: page?.deadLetters ?? [], said, asked: Date.now(), known: page !== null });
  showLetters();
}

/** A service that can't say it at the moment, its database being away for instance, is there all the same. */
function notKnown(failure) {
  if (failure.status > 0) return null;
  throw failure;
}

function showLetters() {
  const all = Object.entries(parked).flatMap(([service, of]) => of.letters.map(letter => ({ service, ...letter })));
  all.sort((one, other) => one.parkedAt < other.parkedAt ? 1 : -1);
  const had = $('letters').contains(document.activeElement);
  const ids = all.map(letter => `${letter.service}-${letter.id}`);
  arrange($('letters'), all.map((letter, at) => showLetter(ids[at], letter)));
  for (const id of letters.keys()) if (!ids.includes(id)) letters.delete(id);
  if (had && !$('letters').contains(document.activeElement)) $('letters-title').focus();
  const unknown = Object.keys(parked).filter(service => !parked[service].known);
  $('no-letters').hidden = all.length > 0;
  write($('no-letters'), unknown.length ? `Not known of ${unknown.join(' and ')}.` : 'There are none.');
}

function showLetter(id, letter) {
  const entry = letters.get(id) ?? newLetter(id, letter);
  letters.set(id, entry);
  const news = JSON.stringify(letter);
  if (entry.news !== news) {
    entry.news = news;
    entry.detail.textContent = letter.detail;
    entry.meta.replaceChildren(...meta(letter));
    entry.letter = letter;
    entry.actions.hidden = letter.state !== 'OPEN';
    nameReplay(entry);
  }
  return entry.item;
}

const failedOften = letter => letter.replays >= FAILED_OFTEN;
function nameReplay({ replay, letter }) {
  const anyway = failedOften(letter) ? ' anyway' : '';
  write(replay, `Replay${anyway}`);
  put(replay, 'aria-label', `Replay${anyway}: ${place(letter)}`);
}

function meta(letter) {
  const happened = [`parked at ${clock(letter.parkedAt)}`, plural(letter.attempts, 'attempt')];
  if (letter.replayedAt) happened.push(`replayed ${letter.replays ? plural(letter.replays, 'time') + ', last ' : ''}at ${clock(letter.replayedAt)}: ${letter.replayResult ?? '–'}`);
  if (letter.discardedAt) happened.push(`discarded at ${clock(letter.discardedAt)}: ${letter.discardReason ?? '–'}`);
  if (!letter.orderId) return [happened.join(' · ')];
  const link = el('button', { type: 'button', class: 'link' }, letter.orderId);
  link.addEventListener('click', () => find(letter.orderId));
  return [happened.join(' · ') + ' · order ', link];
}

function newLetter(id, letter) {
  const named = (text, attributes) => el('button', { type: 'button', 'aria-label': `${text}: ${place(letter)}`, ...attributes }, text);
  const [replay, discard, bytes] = [el('button', { type: 'button' }), named('Discard', { 'aria-expanded': 'false' }), named('Show record', { 'aria-expanded': 'false' })];
  const [detail, meta, record] = [el('p'), el('p', { class: 'quiet' }), el('div', { hidden: '' })];
  const form = discardForm(id, letter);
  const actions = el('div', { class: 'buttons' }, replay, discard);
  const item = el('li', { 'data-letter': id },
    el('div', { class: 'title' }, el('h3', { class: 'code' }, place(letter)), el('span', { class: 'tag' }, letter.service), el('span', { class: 'tag' }, letter.cause)),
    detail, meta, el('div', { class: 'buttons' }, actions, bytes), form, record);
  const entry = { item, letter, detail, meta, actions, replay };
  replay.addEventListener('click', () => replayLetter(entry));
  discard.addEventListener('click', () => toggle(discard, form) && form.reason.focus());
  bytes.addEventListener('click', () => toggle(bytes, record) && showRecord(letter, record));
  return entry;
}

function toggle(button, area) {
  area.hidden = !area.hidden;
  put(button, 'aria-expanded', !area.hidden);
  return !area.hidden;
}

function discardForm(id, letter) {
  const input = el('input', { id: `reason-${id}`, name: 'reason', maxlength: 500, autocomplete: 'off' });
  const form = el('form', { novalidate: '', hidden: '' }, el('div', {}, el('label', { for: input.id }, 'Why it is discarded'), input),
    el('div', { class: 'buttons' }, el('button', {}, 'Discard it')), el('output'));
  form.addEventListener('submit', event => {
    event.preventDefault();
    submit(form, () => act(letter, '/discard', { reason: input.value }, () => 'discarded'));
  });
  return form;
}

async function replayLetter({ letter, replay }) {
  replay.disabled = true;
  try {
    await act(letter, `/replay${failedOften(letter) ? '?force=true' : ''}`, null, done => `${words(done.result)}${done.detail ? `: ${done.detail}` : ''}`);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    say($('letters-said'), `${name(letter)}: ${failure.message}`, 'bad');
  } finally {
    replay.disabled = false;
    if (document.activeElement === document.body) replay.focus();
  }
}
const place = letter => `${letter.topic}-${letter.partition}@${letter.offset}`;
const name = letter => `${letter.service}’s ${place(letter)}`;

async function act(letter, what, body, result) {
  const done = await call(letter.service, 'POST', `/dead-letters/${letter.id}${what}`, { body, signed: true });
  say($('letters-said'), `${name(letter)}: ${result(done)}`, done.result === 'FAILED' ? 'bad' : 'ok');
  parked[letter.service].asked = 0;
  ring();
}

async function showRecord(letter, area) {
  area.replaceChildren(el('p', { class: 'quiet' }, 'Asked for …'));
  try {
    const whole = await call(letter.service, 'GET', `/dead-letters/${letter.id}`);
    area.replaceChildren(el('pre', { tabindex: '0', role: 'region', 'aria-label': 'The record' }, JSON.stringify(whole, null, 2)));
  } catch (failure) {
    area.replaceChildren(el('p', { class: 'wrong' }, failure.message));
  }
}

/** Shows an order by its id, wherever it is in the list. */
async function find(text) {
  const id = text.toLowerCase();
  say($('find-said'), '');
  try {
    orders.set(id, await call('order', 'GET', `/orders/${encodeURIComponent(id)}`));
    if (!shown.includes(id)) shown = [...shown, id];
    opened = id;
    showOrders(shown);
    openOrder(id);
    rows.get(id).button.focus();
    rows.get(id).item.scrollIntoView({ block: 'center' });
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    say($('find-said'), failure.message, 'bad');
  }
}

// ---- the page itself -------------------------------------------------------------------------------------------------

function remembered(name) { try { return localStorage.getItem(name); } catch { return null; } }
function remember(name, value) { try { localStorage.setItem(name, value); } catch { /* then not */ } }

const dark = matchMedia('(prefers-color-scheme: dark)');
function showTheme() {
  const chosen = remembered('theme');
  put(document.documentElement, 'data-theme', chosen);
  put($('theme'), 'aria-pressed', (chosen ?? (dark.matches ? 'dark' : 'light')) === 'dark');
}
$('theme').addEventListener('click', () => {
  remember('theme', $('theme').getAttribute('aria-pressed') === 'true' ? 'light' : 'dark');
  showTheme();
});
dark.addEventListener('change', showTheme);
showTheme();

$('pause').addEventListener('click', () => {
  paused = !paused;
  put($('pause'), 'aria-pressed', paused);
  ring();
});
document.addEventListener('visibilitychange', ring);

$('actor').value = remembered('actor') ?? '';
$('actor').addEventListener('change', () => remember('actor', $('actor').value));
$('you').addEventListener('submit', event => event.preventDefault());
$('place').addEventListener('submit', event => { event.preventDefault(); submit($('place'), () => placeOrders($('place'))); });
$('find').addEventListener('submit', event => { event.preventDefault(); find($('find-id').value.trim()); });
$('status').addEventListener('change', ring);
$('newer').querySelector('button').addEventListener('click', () => { shown = []; ring(); });
$('letters-state').addEventListener('change', () => {
  Object.values(parked).forEach(of => Object.assign(of, { letters: [], asked: 0, known: false }));
  showLetters();
  ring();
});
numberForm('account', 'payment', '/accounts', 'userName', 'balance');
numberForm('item', 'stock', '/items', 'itemName', 'quantity');

new ResizeObserver(placeEdges).observe($('system'));
placeEdges();

for (const service of Object.keys(SERVICES)) {
  poll(async () => {
    const seen = await call(service, 'GET', '/overview');
    showService(service, seen);
    showTopics(service, seen.consumers);
    if (service === 'order') showCounts(seen.orders);
    if (seen.admission) showAdmission(seen.admission);
    await lookAtLetters(service, seen.deadLetters);
  }, (failure, pause) => showAway(service, failure, pause));
}
poll(lookAtOrders, failure => write($('orders-away'), failure.message));
