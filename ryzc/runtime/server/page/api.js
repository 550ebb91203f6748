// The server's interface: models, defaults, and an answer as it comes.

function headers(key) {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function get(path, key) {
  const answer = await fetch(path, { headers: headers(key) });
  if (!answer.ok) throw new Error(await told(answer));
  return answer.json();
}

async function told(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

export const models = async (key) => (await get("v1/models", key)).data;
export const props = (model, key) => get(`props?model=${encodeURIComponent(model)}`, key);

// Yields {text}, {thought}, {reason} and {usage}; throws where the server refuses.
export async function* answer({ model, messages, options, key, signal }) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, ...options };
  const answer = await fetch("v1/chat/completions", { method: "POST", headers: headers(key), body: JSON.stringify(body), signal });
  if (!answer.ok) throw new Error(await told(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice?.delta.content) yield { text: choice.delta.content };
      if (choice?.delta.reasoning_content) yield { thought: choice.delta.reasoning_content };
      if (choice?.finish_reason) yield { reason: choice.finish_reason };
      if (chunk.usage) yield { usage: chunk.usage };
    }
  }
}
