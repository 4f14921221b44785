// The packed rows: base64 of gzip of a header and typed arrays (report/pack.py says how they lie).

const TYPES = { f8: Float64Array, f4: Float32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array };

async function unpack(element) {
  const text = element.textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  element.remove(); // the packed copy is not needed any more
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const whole = await new Response(stream).arrayBuffer();
  const length = new DataView(whole).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(whole, 4, length)));
  const arrays = {};
  for (const [name, [type, first, n]] of Object.entries(header.arrays)) {
    arrays[name] = new TYPES[type](whole, 4 + length + first, n);
  }
  return { header, arrays };
}
