// A picture that can be focused by a click and passes keys and mouse on to Python (anywidget).
const AHEAD = 2 // messages with keys that may be on their way to Python
const REPEAT = 1000 / 30 // milliseconds between two steps of a held key
const LEAST_SCALE = 4 // each pixel becomes so many across and down
const MOST_SCALE = 6
const BESIDE = 450 // pixels for what stands to the right of the picture
const DEGREES = 0.2 // that the head turns for each pixel of the mouse
const LEAST_TURN = 0.3 // degrees; less waits until it has become more
const MOST_TURN = 10 // degrees of a step, and that wait for the next

// What may be sent: the newest, and never more than `AHEAD` without an answer.
function makeLink(model) {
  const link = {
    drawn: 0, // number of the picture that is seen
    onTheWay: 0, // keys that no picture has answered yet
    waiting: null, // the newest key that has still to be sent
    isFree: () => link.onTheWay < AHEAD,
    send(message) {
      link.onTheWay += 1
      model.send({ ...message, drawn: link.drawn })
    },
    press(key) {
      if (link.isFree()) link.send({ key })
      else link.waiting = key
    },
    answer(count) {
      link.onTheWay = Math.max(0, link.onTheWay - count)
      if (link.waiting) link.send({ key: link.waiting })
      link.waiting = null
    },
    report: () => model.send({ drawn: link.drawn }),
  }
  return link
}

// Keys that are pressed one at a time; one that is held goes on by itself.
function listenToPresses(model, el, link) {
  let held = null // code and timer of the key that is held down

  function release() {
    if (!held) return
    clearInterval(held.timer)
    held = null
    link.report()
  }

  function hold(key, code) {
    const timer = setInterval(() => {
      if (link.isFree()) link.send({ key })
    }, REPEAT)
    held = { code, timer }
  }

  el.addEventListener('keydown', event => {
    const isShortcut = event.ctrlKey || event.metaKey || event.altKey
    if (isShortcut || !model.get('bound_keys').includes(event.key)) return
    event.preventDefault()
    event.stopPropagation()
    if (event.repeat) {
      const repeats = model.get('held_keys').includes(event.key)
      if (repeats && held?.code !== event.code) {
        release()
        hold(event.key, event.code)
      }
      return
    }
    release()
    link.press(event.key)
  })
  el.addEventListener('keyup', event => {
    if (event.code === held?.code) release()
  })
  el.addEventListener('blur', release)
  return { release, isHeld: () => held !== null }
}

// Keys and mouse buttons that are held together, and the way of the mouse, at a steady rate.
function makeTicker(model, link) {
  const down = new Set() // codes that are down
  const tapped = new Set() // codes that went down since the last step
  let turn = [0, 0] // degrees down and to the right that no step has made yet
  let timer = null
  const clip = degrees => Math.max(-MOST_TURN, Math.min(MOST_TURN, degrees))

  function stop() {
    clearInterval(timer)
    timer = null
  }

  function step() {
    const codes = [...new Set([...down, ...tapped])]
    const turns = Math.hypot(...turn) >= LEAST_TURN
    if (!codes.length && !turns) return stop()
    if (!link.isFree()) return
    const made = turns ? turn.map(clip) : [0, 0]
    turn = turn.map((degrees, axis) => clip(degrees - made[axis]))
    tapped.clear()
    link.send({ down: codes, turn: made })
  }

  function start() {
    if (timer) return
    timer = setInterval(step, 1000 / model.get('rate'))
    step()
  }

  return {
    press(code) {
      down.add(code)
      tapped.add(code)
      start()
    },
    release: code => down.delete(code),
    move(x, y) {
      turn = [turn[0] + DEGREES * y, turn[1] + DEGREES * x]
      if (Math.hypot(...turn) >= LEAST_TURN) start()
    },
    rest() {
      down.clear()
      tapped.clear()
      turn = [0, 0]
      stop()
    },
    isDown: code => down.has(code),
  }
}

// The mouse belongs to the picture from a click on it until Esc, or until it loses the focus.
// Where a browser does not lock the pointer, it counts while it is over the picture.
function captureMouse(el, canvas, codes, ticker, signal) {
  const isTaken = () => el.dataset.mouse === 'taken'
  const isLocked = () => document.pointerLockElement === canvas

  function take() {
    el.dataset.mouse = 'taken'
    Promise.resolve(canvas.requestPointerLock?.()).catch(() => {})
  }

  function giveBack() {
    delete el.dataset.mouse
    ticker.rest()
    if (isLocked()) document.exitPointerLock()
  }

  canvas.addEventListener('mousedown', event => {
    event.preventDefault()
    el.focus()
    const code = `Mouse${event.button}`
    if (!isTaken()) take()
    else if (codes.includes(code)) ticker.press(code)
  })
  canvas.addEventListener('contextmenu', event => event.preventDefault())
  canvas.addEventListener('mousemove', event => {
    if (isTaken()) ticker.move(event.movementX, event.movementY)
  })
  document.addEventListener('mouseup', event => ticker.release(`Mouse${event.button}`), { signal })
  document.addEventListener(
    'pointerlockchange',
    () => {
      if (isLocked()) el.dataset.locked = 'true'
      else if (el.dataset.locked) {
        delete el.dataset.locked
        giveBack()
      }
    },
    { signal },
  )
  el.addEventListener('blur', giveBack)
  return { giveBack, isTaken }
}

function listenToKeysAndMouse(model, el, canvas, link, signal) {
  const codes = model.get('held_codes')
  const ticker = makeTicker(model, link)
  const mouse = captureMouse(el, canvas, codes, ticker, signal)

  el.addEventListener('keydown', event => {
    if (event.code === 'Escape' && mouse.isTaken()) mouse.giveBack()
    else if (!codes.includes(event.code) || event.metaKey || event.altKey) return
    else if (!event.repeat) ticker.press(event.code)
    event.preventDefault()
    event.stopPropagation()
  })
  el.addEventListener('keyup', event => ticker.release(event.code))
  // control and W close a page; nobody means that while walking
  const stay = event => {
    if (ticker.isDown('ControlLeft')) event.preventDefault()
  }
  window.addEventListener('beforeunload', stay, { signal })
  return () => mouse.giveBack()
}

function showLabels(model, labels) {
  labels.replaceChildren(
    ...model.get('labels').map(text => {
      const label = document.createElement('span')
      label.textContent = text
      return label
    }),
  )
}

export default {
  render({ model, el }) {
    const labels = el.appendChild(document.createElement('div'))
    const canvas = el.appendChild(document.createElement('canvas'))
    const context = canvas.getContext('2d')
    const link = makeLink(model)
    const listening = new AbortController()
    let newest = null // picture for the next animation frame

    el.tabIndex = 0
    el.classList.add('dreamer4-screen')
    labels.className = 'dreamer4-labels'
    el.dataset.lmSuppressShortcuts = 'true' // else JupyterLab takes keys for its own commands

    const presses = listenToPresses(model, el, link)
    let giveBack = () => {}
    if (model.get('held_codes').length)
      giveBack = listenToKeysAndMouse(model, el, canvas, link, listening.signal)

    function fit() {
      const room = (el.parentElement?.clientWidth ?? 0) - BESIDE
      const scale = Math.floor(room / (canvas.width || 1))
      const size = Math.max(LEAST_SCALE, Math.min(MOST_SCALE, scale))
      canvas.style.width = `${canvas.width * size}px`
      canvas.style.height = `${canvas.height * size}px`
    }

    function draw() {
      const { picture, width, height, pixels } = newest
      newest = null
      if (canvas.width !== width || canvas.height !== height) {
        canvas.width = width
        canvas.height = height
        fit()
      }
      context.putImageData(new ImageData(pixels, width, height), 0, 0)
      link.drawn = picture
      el.dataset.drawn = picture
      if (!presses.isHeld() || !link.isFree()) link.report() // else the next key says it
    }

    function receive(message, buffers) {
      link.answer(message.answered)
      if (!newest) requestAnimationFrame(draw)
      const { buffer, byteOffset, byteLength } = buffers[0]
      const pixels = new Uint8ClampedArray(buffer, byteOffset, byteLength)
      newest = { ...message, pixels } // a picture that was not drawn yet is dropped
    }

    const label = () => showLabels(model, labels)
    label()
    window.addEventListener('resize', fit, { signal: listening.signal })
    model.on('change:labels', label)
    model.on('msg:custom', receive)
    model.send({ is_new: true })
    return () => {
      listening.abort()
      presses.release()
      giveBack()
      model.off('change:labels', label)
      model.off('msg:custom', receive)
    }
  },
}
